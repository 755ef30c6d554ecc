"""``--draft``: it reaches the loader from the commands that answer, and what cannot be is one line and exit code 2."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from antiphon.commands import serve
from antiphon_kernels import native

MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"


def test_transcribe_and_chat_pass_it_on(run, fake, recording):
    assert run("transcribe", recording, "--draft", "int8").code == 0
    assert run("chat", "--text", "hi", "--draft", "int4").code == 0 and run("chat", "--text", "hi").code == 0
    assert [keywords["draft"] for _, keywords in fake.loads] == ["int8", "int4", None]


def test_serve_passes_it_on():
    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())
    arguments = parser.parse_args(["serve", "--model", "x", "--draft", "int8"])
    assert serve._spec(arguments, {}).draft == "int8"


@pytest.mark.skipif(not native.available, reason="native module not built")
def test_the_same_answer(run):
    """The demo model's, in bfloat16, from the command line."""
    argv = ("chat", "--model", MODEL, "--text", "what is one plus two", "--dtype", "bfloat16")
    plain, drafted = run(*argv), run(*argv, "--draft", "int8")
    assert plain.code == drafted.code == 0 and plain.out == drafted.out != "\n"


@pytest.mark.parametrize(("value", "expected"), [("int3", "int8, int4, or the folder"), (MODEL, "antiphon quantize")])
def test_refusals(run, value, expected):
    result = run("chat", "--model", MODEL, "--text", "hi", "--draft", value)
    lines = result.err.splitlines()
    assert result.code == 2 and result.out == "" and len(lines) == 1
    assert lines[0].startswith("antiphon: error: draft") and expected in lines[0]
