"""Sound on the wire of a session: 16-bit PCM at 24 kHz, or G.711 at 8 kHz."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr

from ...config import SAMPLE_RATE_IN, SAMPLE_RATE_OUT
from ..audio_out import pcm16
from ..media import from_pcm16

RATES = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}


def _mulaw_table() -> np.ndarray:
    codes = ~np.arange(256, dtype=np.uint8)
    magnitude = (((codes & 0x0F).astype(np.int32) << 3) + 0x84) << ((codes >> 4) & 7)
    return np.where(codes & 0x80, 0x84 - magnitude, magnitude - 0x84).astype(np.int16)


def _alaw_table() -> np.ndarray:
    codes = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (codes >> 4).astype(np.int32) & 7, (codes & 0x0F).astype(np.int32)
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0))
    return np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)


TABLES = {"audio/pcmu": _mulaw_table(), "audio/pcma": _alaw_table()}
"""Value of each G.711 code (ITU-T G.711)."""


def _nearest(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(table, kind="stable").astype(np.uint8)
    values = table[order].astype(np.int32)
    return order, (values[1:] + values[:-1]) / 2


ENCODERS = {kind: _nearest(table) for kind, table in TABLES.items()}


def decode(data: bytes, kind: str) -> np.ndarray:
    """float32 [n] at the rate of ``kind``."""
    if kind == "audio/pcm":
        return from_pcm16(data)
    return TABLES[kind][np.frombuffer(data, np.uint8)].astype(np.float32) / 32768.0


def encode(samples: np.ndarray, kind: str) -> bytes:
    """Bytes of float32 [n] at the rate of ``kind``."""
    if kind == "audio/pcm":
        return pcm16(samples)
    order, borders = ENCODERS[kind]
    return order[np.searchsorted(borders, np.clip(samples, -1, 1) * 32767.0)].tobytes()


class OutputEncoder:
    """A stream of 24 kHz samples as bytes of ``kind``."""

    def __init__(self, kind: str):
        self.kind = kind
        rate = RATES[kind]
        self._resampler = None if rate == SAMPLE_RATE_OUT else soxr.ResampleStream(SAMPLE_RATE_OUT, rate, 1)

    def push(self, samples: np.ndarray, last: bool = False) -> bytes:
        """Bytes for more samples; with ``last``, all that is left too."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples.astype(np.float32), last=last)
        return encode(samples, self.kind)


@dataclass
class Piece:
    """Part of what came in: first sample's number since the session began, samples at the rate on the wire."""

    start: int
    samples: np.ndarray


class InputBuffer:
    """Sound that came in and is not committed yet. Positions are milliseconds since the session began."""

    def __init__(self, kind: str, max_seconds: float):
        self.max_seconds = max_seconds
        self.pieces: list[Piece] = []
        self.received_ms = 0.0
        self.set_format(kind)

    def set_format(self, kind: str) -> None:
        """Sound of another kind follows; what is there is dropped."""
        self.kind, self.rate = kind, RATES[kind]
        self.pieces.clear()
        self._received = round(self.received_ms * self.rate / 1000)
        self._to_16k = soxr.ResampleStream(self.rate, SAMPLE_RATE_IN, 1)

    @property
    def duration_ms(self) -> float:
        """How much is buffered."""
        return sum(len(piece.samples) for piece in self.pieces) * 1000 / self.rate

    def append(self, data: bytes) -> np.ndarray | None:
        """Take more; returns the same sound at 16 kHz, or None, and takes nothing, if that would be too much."""
        samples = decode(data, self.kind)
        if self.duration_ms + len(samples) * 1000 / self.rate > self.max_seconds * 1000:
            return None
        self.pieces.append(Piece(self._received, samples))
        self._received += len(samples)
        self.received_ms = self._received * 1000 / self.rate
        return self._to_16k.resample_chunk(samples)

    def take(self, start_ms: float = 0.0, end_ms: float = float("inf")) -> np.ndarray:
        """Everything from ``start_ms`` to ``end_ms``; it and what is before it leaves the buffer."""
        start = start_ms * self.rate / 1000
        stop = min(end_ms * self.rate / 1000, self._received)
        taken, kept = [np.zeros(0, np.float32)], []
        for piece in self.pieces:
            low, high = (int(np.clip(edge - piece.start, 0, len(piece.samples))) for edge in (start, stop))
            taken.append(piece.samples[low:high])
            if high < len(piece.samples):
                kept.append(Piece(piece.start + high, piece.samples[high:]))
        self.pieces = kept
        return np.concatenate(taken)

    def drop_before(self, ms: float) -> None:
        """Forget whole pieces that lie before ``ms``."""
        edge = ms * self.rate / 1000
        self.pieces = [piece for piece in self.pieces if piece.start + len(piece.samples) > edge]

    def clear(self) -> None:
        self.pieces.clear()
