"""``--compact``: it reaches the loader from the commands that answer, and what cannot be is one line and exit code 2."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from antiphon.commands import serve
from antiphon.errors import ConfigError
from antiphon_kernels import native

MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"


def test_transcribe_and_chat_pass_it_on(run, fake, recording):
    assert run("transcribe", recording, "--compact", "on").code == 0
    assert run("chat", "--text", "hi", "--compact", "off").code == 0
    assert run("chat", "--text", "hi", "--compact", "auto").code == run("chat", "--text", "hi").code == 0
    assert [keywords["compact"] for _, keywords in fake.loads] == [True, False, None, None]


@pytest.mark.parametrize(("given", "expected"), [([], None), (["--compact=on"], True), (["--compact=off"], False)])
def test_serve_passes_it_on(given, expected):
    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())
    arguments = parser.parse_args(["serve", "--model", "x", *given])
    assert serve._spec(arguments, {}).compact is expected


def test_it_is_no_option_of_a_file(tmp_path):
    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())
    (tmp_path / "c.yaml").write_text("compact: false\n")
    with pytest.raises(ConfigError, match="compact is an option of the command line"):
        serve._configuration(parser.parse_args(["serve", "--model", "x", "--config", str(tmp_path / "c.yaml")]))


@pytest.mark.skipif(not native.available, reason="native module not built")
def test_the_same_answer(run):
    """The demo model's, in either dtype, from the command line."""
    for dtype in ("bfloat16", "float32"):
        argv = ("chat", "--model", MODEL, "--text", "what is one plus two", "--dtype", dtype, "--compact")
        on, off = run(*argv, "on"), run(*argv, "off")
        assert on.code == off.code == 0 and on.out == off.out != "\n"


@pytest.mark.skipif(not native.available, reason="native module not built")
def test_refusals(run, tmp_path):
    """With a converted model, which has no matrix in bfloat16; and a word that it does not know."""
    assert run("quantize", MODEL, tmp_path / "int8", "--scheme", "int8").code == 0
    result = run("chat", "--model", tmp_path / "int8", "--text", "hi", "--compact", "on")
    lines = result.err.splitlines()
    assert result.code == 2 and result.out == "" and len(lines) == 1
    assert lines[0].startswith("antiphon: error: compact weights are bfloat16") and "int8 layers and int8 heads" in lines[0]
    result = run("chat", "--model", MODEL, "--text", "hi", "--compact", "maybe")
    assert result.code == 2 and result.out == "" and "'maybe'" in result.err and "auto" in result.err
