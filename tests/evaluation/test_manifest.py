"""Manifests: the shared format reads, and what is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antiphon.errors import InputError
from antiphon.evaluation import read_manifest

QUESTIONS = Path(__file__).resolve().parents[2] / "examples" / "questions" / "manifest.jsonl"


def test_the_examples_manifest():
    rows = read_manifest(QUESTIONS)
    assert [row.id for row in rows] == ["p002", "p019", "p025", "p029", "p040", "p045", "p047"]
    assert all(row.wav.is_file() for row in rows)
    assert [row.output_type for row in rows] == ["text"] * 2 + ["both"] * 5
    assert rows[2].answer == "one two three four five six" and rows[2].instruction == "Please transcribe the audio."


def test_only_what_is_needed_must_be_there(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"wav": "a.wav", "task": "asr", "reference": "hi"}\n\n{"wav": "b.wav", "task": "chat", "answer": "yo"}\n'
    )
    first, second = read_manifest(path)
    assert (first.id, first.wav, first.output_type) == ("a.wav", tmp_path / "a.wav", "text")
    assert (second.reference, second.output_type) == (None, "both")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        (json.dumps({"wav": "a", "task": "sing"}), "'sing'"),
        (json.dumps({"wav": "a", "task": "asr"}), "reference must be text"),
        (json.dumps({"wav": "a", "task": "chat", "reference": "x"}), "answer must be text"),
        (json.dumps({"wav": 3, "task": "asr", "reference": "x"}), "wav must be text, got 3"),
        (json.dumps({"wav": "a", "task": "chat", "answer": "x", "output_type": "audio"}), "output_type"),
    ],
)
def test_wrong_rows_are_named_with_their_line(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    path.write_text('{"wav": "a.wav", "task": "asr", "reference": "hi"}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2") as caught:
        read_manifest(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"RIFF\xff\xfe\x80"])
def test_files_that_are_no_manifest(tmp_path, content):
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="m.jsonl"):
        read_manifest(path)
