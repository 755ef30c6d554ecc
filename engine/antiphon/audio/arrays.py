"""Recordings that are already arrays: to mono float32."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..errors import AudioError

MAX_CHANNELS = 64


def from_array(array: Any, rate: Any) -> tuple[np.ndarray, int]:
    """Mono float32 samples and the rate in Hz of an array or tensor [N], [N, channels] or [channels, N].

    Integer samples are full scale: int16 / 32768, int32 / 2**31, uint8 around 128. In two dimensions the shorter one
    counts as the channels.
    """
    try:
        rate = int(rate) if isinstance(rate, float) and rate.is_integer() else operator.index(rate)
    except TypeError:
        raise AudioError(f"sampling rate {rate!r}: expected a whole number of Hz") from None
    try:
        samples = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"audio array cannot be read: {error}") from error
    if samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
        raise AudioError(
            f"audio array of type {samples.dtype} and shape {samples.shape}: "
            "expected real numbers of shape [N], [N, channels] or [channels, N]"
        )
    if samples.ndim == 2:
        samples = samples if samples.shape[0] < samples.shape[1] else samples.T
        if samples.shape[0] > MAX_CHANNELS:
            raise AudioError(f"audio array of shape {np.shape(array)}: more than {MAX_CHANNELS} channels")
    return to_mono(to_float(samples)), rate


def to_float(samples: np.ndarray) -> np.ndarray:
    """Float32 in -1..1 from full-scale integers (unsigned ones around their middle); floats pass through."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return samples.astype(np.float32, copy=False)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    middle = half if samples.dtype.kind == "u" else 0.0
    wide = np.float32 if samples.dtype.itemsize <= 2 else np.float64
    return ((samples.astype(wide) - wide(middle)) / wide(half)).astype(np.float32)


def to_mono(samples: np.ndarray) -> np.ndarray:
    """Mean over the channels of [channels, N], or [N] unchanged; float32 [N]."""
    if samples.ndim == 1 or samples.size == 0:
        return samples.reshape(-1)
    return samples.mean(axis=0, dtype=np.float32)
