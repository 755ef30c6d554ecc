"""Cutting a recording into segments of 30 s, and how many speech tokens it gives (reference behaviour section 3)."""

from __future__ import annotations

import numpy as np

from ..config import SAMPLES_PER_TOKEN_IN

SEGMENT_SAMPLES = 480_000


def num_tokens(num_samples: int) -> int:
    """Speech tokens (and rows of continuous features) of a recording of ``num_samples`` samples at 16 kHz."""
    return -(-num_samples // SAMPLES_PER_TOKEN_IN)


def split_segments(samples: np.ndarray) -> list[np.ndarray]:
    """Views of at most 480,000 samples each; all but the last are full."""
    return [samples[start : start + SEGMENT_SAMPLES] for start in range(0, len(samples), SEGMENT_SAMPLES)]
