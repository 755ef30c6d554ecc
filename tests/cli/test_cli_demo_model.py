"""The commands on the demo checkpoint: what it hears, answers and says, and that a seed fixes all of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = EXAMPLES / "demo_model"
QUESTIONS = EXAMPLES / "questions"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_transcribe(keep_models, run):
    result = run("transcribe", "--model", MODEL, QUESTIONS / "p019.wav", QUESTIONS / "p045.wav")
    assert result.code == 0
    texts = [line.split(": ")[1] for line in result.out.splitlines()]
    assert texts == ["i like the sun and the pink sky", "what color is the sky"]


def test_chat_says_the_same_for_the_same_seed_in_every_process(run, tmp_path):
    argv = ["chat", "--model", str(MODEL), "--audio", str(QUESTIONS / "p029.wav"), "--seed", "11", "--out"]
    for name in ("a.wav", "b.wav"):
        result = run(*argv, tmp_path / name)
        assert result.code == 0 and result.out == "one plus six is seven\n"
    other = run(*argv[:-3], "--seed", "12", "--out", tmp_path / "c.wav")
    assert other.code == 0
    command = [sys.executable, "-m", "antiphon", *argv, str(tmp_path / "d.wav")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert digest(tmp_path / "a.wav") == digest(tmp_path / "b.wav") == digest(tmp_path / "d.wav")
    assert digest(tmp_path / "a.wav") != digest(tmp_path / "c.wav")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert 0.8 < file.getnframes() / file.getframerate() < 4


def test_sampled_tokens_are_the_same_in_every_process(run, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "message_type": "text", "content": "hello"}]))
    argv = [
        "trace", "--model", str(MODEL), "--messages", str(tmp_path / "m.json"), "--output-type", "both", "--seed", "3",
        "--text-temperature", "2", "--audio-temperature", "2", "--audio-top-k", "50", "--max-new-tokens", "30", "--out",
    ]  # fmt: skip
    assert run(*argv, tmp_path / "a.npz").code == 0
    command = [sys.executable, "-m", "antiphon", *argv, str(tmp_path / "b.npz")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
        assert len(a["audio_stream"]) <= 30


def test_conversation_with_history(keep_models, run, tmp_path):
    history, out = tmp_path / "h.json", tmp_path / "a.wav"
    first = run("chat", "--model", MODEL, "--audio", QUESTIONS / "p045.wav", "--history", history)
    second = run("chat", "--model", MODEL, "--audio", QUESTIONS / "p029.wav", "--history", history, "--out", out)
    assert (first.out, second.out) == ("the sky is blue\n", "one plus six is seven\n")
    assert len(json.loads(history.read_text())) == 4 and out.exists()


def test_inspect(run):
    result = run("inspect", MODEL)
    assert result.code == 0
    assert "language model" in result.out and "vocoder" in result.out and "KV cache" in result.out


@pytest.mark.slow
def test_eval_of_the_example_questions(keep_models, run):
    result = run("eval", "--model", MODEL, "--manifest", QUESTIONS / "manifest.jsonl", "--speech", "--json")
    assert result.code == 0
    summary = json.loads(result.out.splitlines()[-1])
    assert summary["answer_accuracy"] == 1 and summary["plain"]["wer_all"] <= 0.1
    assert summary["plain"]["round_trip_wer"] <= 0.6 and 0 < summary["rtf"] < 50
    assert [item["id"] for item in summary["items"]] == ["p002", "p019", "p025", "p029", "p040", "p045", "p047"]
