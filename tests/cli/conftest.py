"""The command line in this process, and a model that answers without computing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import antiphon
from antiphon import cli
from antiphon.deltas import AudioDelta, FinishDelta, TextDelta, Timings, Usage


@dataclass
class Outcome:
    """What a command returned and wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    """``run("chat", …)`` → exit code, stdout, stderr; a traceback would be an exception here."""
    monkeypatch.delenv("ANTIPHON_MODEL", raising=False)

    def call(*argv: str | Path) -> Outcome:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


class FakeModel:
    """Stands in for ``KimiAudio``: says "one two" and 0.2 s of a ramp; keeps what it was asked."""

    loads: ClassVar[list[tuple[tuple, dict]]] = []
    requests: ClassVar[list[tuple[list, dict]]] = []
    pieces = (TextDelta("one"), TextDelta(" two"), AudioDelta(np.linspace(-2, 2, 4800, dtype=np.float32)))
    audio_tokens = 3

    def __init__(self, *args, **kwargs):
        self.loads.append((args, kwargs))

    def generate_stream(self, chats, **kwargs):
        self.requests.append((chats, kwargs))
        for piece in self.pieces:
            if kwargs["output_type"] == "both" or not isinstance(piece, AudioDelta):
                yield piece
        yield FinishDelta("stop", Usage(10, 9, 2, self.audio_tokens), Timings())

    def generate(self, chats, output_type="text", **kwargs):
        deltas = list(self.generate_stream(chats, output_type=output_type, **kwargs))
        sound = [delta.pcm for delta in deltas if isinstance(delta, AudioDelta)]
        text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        return (np.concatenate(sound)[None] if sound else None), text


@pytest.fixture
def fake(monkeypatch) -> type[FakeModel]:
    """``antiphon.KimiAudio`` is :class:`FakeModel` for one test."""
    model = type("Fake", (FakeModel,), {"loads": [], "requests": []})
    monkeypatch.setattr(antiphon, "KimiAudio", model, raising=False)
    return model


@pytest.fixture(scope="session")
def loaded_models() -> dict:
    """Models that :func:`keep_models` has loaded, by their arguments."""
    return {}


@pytest.fixture
def keep_models(monkeypatch, loaded_models):
    """Commands load each model once in all tests that use this; a failure to load is not kept."""
    from antiphon.api import KimiAudio

    def load(*args, **kwargs):
        key = (args, tuple(sorted(kwargs.items())))
        if key not in loaded_models:
            loaded_models[key] = KimiAudio(*args, **kwargs)
        return loaded_models[key]

    monkeypatch.setattr(antiphon, "KimiAudio", load, raising=False)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """0.5 s of a tone, 16 kHz mono."""
    from antiphon.commands.sound import WavWriter

    path = tmp_path / "tone.wav"
    writer = WavWriter(path, 16_000)
    writer.write(0.3 * np.sin(np.arange(8000, dtype=np.float32) / 20))
    writer.close()
    return path
