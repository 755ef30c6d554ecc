"""Any recording to mono float32 at 16 kHz (reference behaviour section 3)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO, TypedDict, Union

import numpy as np
import soxr

from ..config import SAMPLE_RATE_IN
from ..errors import AudioError
from .arrays import from_array
from .decode import decode


class ArrayAndRate(TypedDict):
    """A recording in memory, as the ``datasets`` library gives it."""

    array: Any
    sampling_rate: int


AudioInput = Union[str, "os.PathLike[str]", bytes, BinaryIO, tuple[np.ndarray, int], ArrayAndRate]
"""What counts as a recording: a path, an encoded file as bytes or as an open binary file, ``(array, rate)``, or
``{"array": ..., "sampling_rate": ...}``. Arrays are [N], [N, channels] or [channels, N]; integers are full scale."""

MIN_RATE = 1_000
MAX_RATE = 768_000
EXPECTED = "a path, bytes, an open binary file, (array, rate), or {'array': ..., 'sampling_rate': ...}"


def load_audio(source: AudioInput, max_seconds: float | None = None) -> np.ndarray:
    """Samples of ``source``: channels averaged, 16 kHz, no normalisation, no trimming.

    Args:
        max_seconds: longer recordings are refused while they are decoded; None for no limit.

    Returns:
        float32 [N], N >= 1, contiguous, 16-bit PCM scaled by 1 / 32768.

    Raises:
        AudioError: not a recording, missing, damaged, without samples, with NaN or infinite samples, or too long.
    """
    samples, rate = _samples_and_rate(source, max_seconds)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"sampling rate {rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
    if len(samples) == 0:
        raise AudioError(f"{describe(source)} holds no samples")
    if max_seconds is not None and len(samples) > max_seconds * rate:
        raise AudioError(f"{describe(source)} is longer than {max_seconds:g} s")
    if not np.isfinite(samples).all():
        at = int(np.argmin(np.isfinite(samples)))
        raise AudioError(f"{describe(source)}: sample {at} is {samples[at]}; expected finite numbers")
    return resample(samples, rate)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """``samples`` (float32 [n] at ``rate`` Hz) at 16 kHz with soxr HQ: ceil(n * 16000 / rate) samples."""
    if rate == SAMPLE_RATE_IN:
        return np.ascontiguousarray(samples, dtype=np.float32)
    wanted = -(-len(samples) * SAMPLE_RATE_IN // rate)
    result = np.zeros(wanted, dtype=np.float32)
    converted = soxr.resample(samples, rate, SAMPLE_RATE_IN, quality="HQ")[:wanted]
    result[: len(converted)] = converted
    return result


def describe(source: Any) -> str:
    """A short name of a recording for messages."""
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"audio of {len(source)} bytes"
    return str(getattr(source, "name", None) or f"audio given as {type(source).__name__}")


def _samples_and_rate(source: AudioInput, max_seconds: float | None) -> tuple[np.ndarray, int]:
    if isinstance(source, Mapping):
        if not {"array", "sampling_rate"} <= source.keys():
            raise AudioError(f"audio given as a mapping with keys {sorted(source)}: expected 'array', 'sampling_rate'")
        return from_array(source["array"], source["sampling_rate"])
    if isinstance(source, tuple):
        if len(source) != 2:
            raise AudioError(f"audio given as a tuple of {len(source)}: expected (array, rate)")
        return from_array(*source)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read"):
        return decode(source, describe(source), max_seconds)
    raise AudioError(f"audio given as {type(source).__name__}: expected {EXPECTED}")
