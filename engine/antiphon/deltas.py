"""What a generation yields while it runs: pieces of text, pieces of sound, and one end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import SAMPLE_RATE_OUT


@dataclass(frozen=True)
class TextDelta:
    """More text, never cut inside a character."""

    text: str


@dataclass(frozen=True)
class AudioDelta:
    """More sound: float32 [n] at ``sample_rate`` Hz, nominally within -1..1 and not clipped."""

    pcm: np.ndarray
    sample_rate: int = SAMPLE_RATE_OUT


@dataclass(frozen=True)
class Usage:
    """Counts of one request. ``cached_tokens`` prompt positions came from the prefix cache."""

    prompt_tokens: int
    steps: int
    text_tokens: int
    audio_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was added; None for what did not happen."""

    encoded: float | None = None
    first_text: float | None = None
    first_audio: float | None = None
    finished: float | None = None


@dataclass(frozen=True)
class FinishDelta:
    """The end: ``reason`` is ``stop`` (the model ended) or ``length`` (a limit did)."""

    reason: str
    usage: Usage
    timings: Timings


Delta = TextDelta | AudioDelta | FinishDelta
