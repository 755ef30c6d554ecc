"""The evaluation loop and its report on a model whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

import antiphon
from antiphon import cli
from antiphon.commands.sound import WavWriter
from antiphon.evaluation import evaluate, read_manifest, summarise


class Parrot:
    """Transcribes every recording as "one two", answers "one two" with 0.5 s of speech, hears "one too"."""

    def __init__(self, *args, **kwargs):
        self.asked = []

    def generate(self, chats, output_type="text", seed=None):
        self.asked.append((chats, output_type, seed))
        if chats[0]["message_type"] == "text":
            heard_back = chats[1]["content"][1] == 24_000
            return None, "one too" if heard_back else "one two"
        speech = np.zeros((1, 12_000), np.float32) if output_type == "both" else None
        return speech, "One two."


@pytest.fixture
def manifest(tmp_path):
    writer = WavWriter(tmp_path / "a.wav", 16_000)
    writer.write(np.zeros(16_000, np.float32))
    writer.close()
    rows = [
        {"id": "right", "wav": "a.wav", "task": "asr", "reference": "one two"},
        {"id": "wrong", "wav": "a.wav", "task": "asr", "reference": "one three"},
        {
            "id": "said",
            "wav": "a.wav",
            "task": "chat",
            "reference": "one two",
            "answer": "one two",
            "output_type": "text",
        },
        {"id": "other", "wav": "a.wav", "task": "chat", "answer": "no"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rates_without_speech(manifest):
    model = Parrot()
    report = summarise(evaluate(model, read_manifest(manifest)))
    assert report.plain.wer == 1 / 4 and report.plain.wer_all == 1 / 6
    assert report.answer_accuracy == 0.5
    assert report.plain.round_trip_wer is None and report.round_trip_exact is None
    assert [output for chats, output, _ in model.asked if chats[0]["message_type"] == "audio"] == ["text", "both"]
    assert report.rtf > 0 and report.items[3].speech_seconds == 0.5 and report.items[3].transcript is None


def test_speech_is_transcribed_back(manifest):
    model = Parrot()
    report = summarise(evaluate(model, read_manifest(manifest), speech=True, seed=5))
    assert report.plain.round_trip_wer == 0.5 and report.round_trip_exact == 0
    answered = [(output, seed) for chats, output, seed in model.asked if chats[0]["message_type"] == "audio"]
    assert answered == [("both", 5), ("both", 5)]


def test_command_prints_items_and_ends_with_one_object(manifest, monkeypatch, capsys):
    monkeypatch.setattr(antiphon, "KimiAudio", Parrot, raising=False)
    assert cli.main(["eval", "--model", "m", "--manifest", str(manifest), "--speech", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("right") and "(said: one three)" in out[1] and "(expected: no)" in out[3]
    last = json.loads(out[-1])
    assert {"wer", "cer", "answer_accuracy", "round_trip_wer", "rtf", "items"} <= last.keys()
    assert len(last["items"]) == 4 and last["items"][2]["heard"] == "one too"
    assert last["items"][1]["transcript"] == "one two" and last["answer_accuracy"] == 0.5


def test_missing_recording_is_an_error_of_the_caller(manifest, monkeypatch, capsys):
    (manifest.parent / "a.wav").unlink()
    monkeypatch.setattr(antiphon, "KimiAudio", Parrot, raising=False)
    assert cli.main(["eval", "--model", "m", "--manifest", str(manifest)]) == 2
    assert "a.wav" in capsys.readouterr().err
