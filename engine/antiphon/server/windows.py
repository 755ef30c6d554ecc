"""A long recording in windows of at most 30 s, cut where it is quiet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import SAMPLE_RATE_IN

LONGEST = 30 * SAMPLE_RATE_IN
EARLIEST = 20 * SAMPLE_RATE_IN
FRAME = SAMPLE_RATE_IN // 50
SMOOTH = 15
"""Frames of 20 ms over which loudness is averaged: a cut lies in the middle of the quietest 0.3 s."""


class Window(NamedTuple):
    """Samples [start, end) of a recording."""

    start: int
    end: int


def cut(samples: np.ndarray) -> list[Window]:
    """Windows that cover ``samples`` (float32 [n] at 16 kHz), each at most 30 s, all but the last at least 20 s."""
    windows, start = [], 0
    while len(samples) - start > LONGEST:
        end = start + _quietest(samples[start + EARLIEST : start + LONGEST]) + EARLIEST
        windows.append(Window(start, end))
        start = end
    windows.append(Window(start, len(samples)))
    return windows


def _quietest(samples: np.ndarray) -> int:
    """Middle of the quietest stretch, in samples."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = np.convolve((frames**2).mean(axis=1), np.ones(SMOOTH) / SMOOTH, mode="valid")
    return (int(np.argmin(loudness)) + SMOOTH // 2) * FRAME
