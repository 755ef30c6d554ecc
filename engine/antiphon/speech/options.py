"""What a caller may choose about the detokenizer, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..config import FRAMES_PER_TOKEN
from ..errors import InputError

Overlap = Literal["reference", "exact", "lookahead"]
OVERLAPS = ("reference", "exact", "lookahead")
MAX_CROSS_FADE = 1920


@dataclass(frozen=True)
class SpeechOptions:
    """Chunking, integration and stitching of one stream; the defaults are the reference's. Unit: speech tokens (80 ms).

    first_chunk: new tokens of the first chunk; more than ``look_ahead``.
    chunk: new tokens of a full chunk.
    chunk_growth: what is heard of a chunk grows by this factor: ``first_chunk - look_ahead`` tokens of the first, so many
        times more of each following one, up to ``chunk``; then every piece lasts while the next one is made. None: the
        second chunk is full.
    look_ahead: tokens at a chunk's end that are solved for context only and solved again with the next chunk.
    ode_steps: Euler steps, one network pass each.
    overlap: "reference" (half-chunk Hamming cross-fade, gain 1.08), "exact" (equal to vocoding the whole mel at once) or
        "lookahead" (look-ahead frames as right context; a chunk is heard as soon as it is solved).
    vocoder_context: mel frames of context on each side for "exact" and "lookahead"; None: the bound of the layers, with
        which "exact" is exact. The reference's overlap has no context of its own.
    cross_fade: samples at a chunk's end that "lookahead" holds back and fades into their second rendering.
    eager: solve a chunk as soon as its tokens are there, instead of waiting for the token that shows that it is not the
        last one. Where the stream then ends at a chunk's end, the look-ahead is solved once more, alone.
    """

    first_chunk: int = 30
    chunk: int = 30
    chunk_growth: float | None = None
    look_ahead: int = 12
    ode_steps: int = 29
    overlap: Overlap = "reference"
    vocoder_context: int | None = None
    cross_fade: int = 480
    eager: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range."""
        self._check_range("look_ahead", 0, 900)
        self._check_range("first_chunk", self.look_ahead + 1, 900, f"look_ahead is {self.look_ahead}")
        self._check_range("chunk", 1, 900)
        self._check_range("ode_steps", 1, 1000)
        self._check_range("cross_fade", 0, MAX_CROSS_FADE)
        if self.vocoder_context is not None:
            self._check_range("vocoder_context", 0, 1000)
        if self.chunk_growth is not None and not 1 < self.chunk_growth <= 100:
            raise InputError(f"chunk_growth must be above 1 and at most 100, or None, got {self.chunk_growth!r}")
        if self.overlap not in OVERLAPS:
            raise InputError(f"overlap must be one of {', '.join(OVERLAPS)}, got {self.overlap!r}")

    def _check_range(self, name: str, low: int, high: int, why: str = "") -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            reason = f" ({why})" if why else ""
            raise InputError(f"{name} must be an integer from {low} to {high}{reason}, got {value!r}")

    def chunk_size(self, index: int) -> int:
        """New tokens of the chunk with this index, unless the stream ends before."""
        if index == 0:
            return self.first_chunk
        heard = self.first_chunk - self.look_ahead
        if self.chunk_growth is None or heard >= self.chunk:
            return self.chunk
        for _ in range(index):
            heard = max(heard + 1, int(heard * self.chunk_growth))
            if heard >= self.chunk:
                return self.chunk
        return heard

    @property
    def look_ahead_frames(self) -> int:
        """Mel frames of the look-ahead."""
        return self.look_ahead * FRAMES_PER_TOKEN

    @property
    def max_frames(self) -> int:
        """Rows of the largest chunk that can occur."""
        return (max(self.first_chunk, self.chunk) + self.look_ahead) * FRAMES_PER_TOKEN
