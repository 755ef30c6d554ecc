"""Every mistake of a caller: one clear line on stderr, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = EXAMPLES / "demo_model"
QUESTION = EXAMPLES / "questions" / "p029.wav"


def refused(result, *expected: str) -> None:
    """The shape of every refusal."""
    assert result.code == 2 and result.out == "", result
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("antiphon: error: "), result.err
    for part in expected:
        assert part in lines[0], lines[0]


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def no_samples(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def cut_header(path: Path) -> None:
    path.write_bytes(QUESTION.read_bytes()[:20])


def text(path: Path) -> None:
    path.write_text("this is a letter, not a recording\n" * 20)


def folder(path: Path) -> None:
    path.mkdir()


AUDIO = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (empty_file, "empty"),
    "no samples": (no_samples, "no samples"),
    "corrupt": (garbage, "not a readable recording"),
    "cut header": (cut_header, "a.wav"),
    "text": (text, "looks text"),
    "folder": (folder, "is a folder"),
}


@pytest.mark.parametrize("case", AUDIO)
@pytest.mark.parametrize("command", ["transcribe", "chat"])
def test_recordings(keep_models, run, tmp_path, command, case):
    make, expected = AUDIO[case]
    path = tmp_path / "a.wav"
    make(path)
    out = tmp_path / "out.wav"
    argv = [path] if command == "transcribe" else ["--audio", path, "--out", out]
    refused(run(command, "--model", MODEL, *argv), "a.wav", expected)
    assert not out.exists()


def test_spoken_words_passed_as_a_recording(keep_models, run):
    refused(run("transcribe", "--model", MODEL, "what is one plus two"), "looks like text")


USER = {"role": "user", "message_type": "text", "content": "hi"}
MESSAGES = {
    "no list": ({"role": "user"}, "expected a list"),
    "empty": ([], "empty"),
    "unknown role": ([USER | {"role": "system"}], "'system'"),
    "unknown type": ([USER | {"message_type": "image"}], "'image'"),
    "no content": ([{"role": "user", "message_type": "text"}], "content"),
    "number as text": ([USER | {"content": 3}], "string"),
    "number as audio": ([USER | {"message_type": "audio", "content": 3}], "recording"),
    "missing audio": ([USER, USER | {"message_type": "audio", "content": "b.wav"}], "b.wav"),
    "audio-text as text": ([USER | {"message_type": "audio-text"}], "[recording, text]"),
    "too long": ([USER | {"content": "one two three " * 3000}], "positions"),
    "more text than sound": (
        [USER | {"message_type": "audio-text", "content": [str(QUESTION), "one two three " * 100]}],
        "belong together",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(keep_models, run, tmp_path, case):
    messages, expected = MESSAGES[case]
    (tmp_path / "m.json").write_text(json.dumps(messages))
    out = tmp_path / "t.npz"
    refused(run("trace", "--model", MODEL, "--messages", tmp_path / "m.json", "--out", out), expected)
    assert not out.exists()


def test_a_prompt_that_is_too_long_says_both_lengths(keep_models, run):
    limit = json.loads((MODEL / "config.json").read_text())["max_position_embeddings"]
    refused(run("chat", "--model", MODEL, "--text", "one two three " * 3000), str(limit), "the prompt has ")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-new-tokens", 0),
        ("--text-temperature", -1),
        ("--audio-top-k", -1),
        ("--text-repetition-penalty", 0),
        ("--audio-repetition-window-size", 0),
        ("--seed", -1),
        ("--text-temperature", "nan"),
    ],
)
def test_sampling_arguments(keep_models, run, option, value):
    refused(run("chat", "--model", MODEL, "--text", "hi", f"{option}={value}"), option[2:].replace("-", "_"))


def test_device_that_is_not_there(run):
    refused(run("chat", "--model", MODEL, "--text", "hi", "--device", "abacus"), "abacus")


@pytest.fixture
def broken(tmp_path) -> Path:
    """A copy of the demo model made of links, to be damaged in one place."""
    copy = tmp_path / "model"
    for path in MODEL.rglob("*"):
        target = copy / path.relative_to(MODEL)
        if path.is_dir():
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return copy


def replace(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def test_truncated_safetensors(run, broken):
    path = broken / "model.safetensors"
    replace(path, (MODEL / "model.safetensors").read_bytes()[:-1000])
    refused(run("chat", "--model", broken, "--text", "hi"), str(path))


def test_missing_key(run, broken):
    path = broken / "model.safetensors"
    change_tensors(path, lambda tensors: tensors.pop("model.mimo_layers.1.mlp.up_proj.weight"))
    refused(
        run("chat", "--model", broken, "--text", "hi"), "model.safetensors", "model.mimo_layers.1.mlp.up_proj.weight"
    )


def test_unexpected_key(run, broken):
    path = broken / "whisper-large-v3" / "model.safetensors"
    change_tensors(path, lambda tensors: tensors.update({"model.encoder.extra": torch.zeros(1)}))
    refused(run("chat", "--model", broken, "--text", "hi"), "whisper-large-v3", "model.encoder.extra")


def test_wrong_shape(run, broken):
    path = broken / "model.safetensors"
    change_tensors(path, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][:-1].clone()}))
    refused(run("chat", "--model", broken, "--text", "hi"), "model.safetensors", "lm_head.weight")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_is_not_weights(run, broken, tmp_path, zipped):
    path, trace = broken / "vocoder" / "model.pt", tmp_path / "executed"
    path.unlink()
    if zipped:
        torch.save({"generator": Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"generator": Evil(trace)}))
    refused(run("chat", "--model", broken, "--text", "hi", "--out", tmp_path / "a.wav"), str(path))
    assert not trace.exists()


def test_speech_without_a_detokenizer(run, broken, tmp_path):
    for path in (broken / "audio_detokenizer").iterdir():
        path.unlink()
    (broken / "audio_detokenizer").rmdir()
    refused(run("chat", "--model", broken, "--text", "hi", "--out", tmp_path / "a.wav"), "audio_detokenizer")
    assert run("chat", "--model", broken, "--text", "hi", "--max-new-tokens", 2).code == 0


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b"{}"], ids=["missing", "cut", "list", "empty"])
def test_config(run, broken, content):
    replace(broken / "config.json", content)
    refused(run("inspect", broken), "config.json")


def test_no_model(run, tmp_path):
    refused(run("inspect", tmp_path / "absent"), "absent")
    refused(run("transcribe", "--model", MODEL / "config.json", QUESTION), "is a file")


@pytest.mark.parametrize(
    ("variable", "value", "known"), [("ANTIPHON_CPU_ISA", "avx1024", "scalar, "), ("ANTIPHON_BACKEND", "fast", "'reference', ")]
)
def test_variables_of_the_kernels(variable, value, known):
    """They are read once, so this needs processes of its own."""
    from antiphon_kernels import native

    if variable == "ANTIPHON_CPU_ISA" and not native.available:
        pytest.skip("native module not built")
    command = [sys.executable, "-m", "antiphon", "transcribe", str(QUESTION), "--model", str(MODEL), "--device", "cpu"]
    done = subprocess.run(
        command, check=False, env=os.environ | {variable: value}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert variable in done.stderr and repr(value) in done.stderr and known in done.stderr
