"""Whisper's log-mel spectrogram, which both audio encoders take (reference behaviour section 4)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ..config import SAMPLE_RATE_IN

NUM_MELS = 128
NUM_FFT = 400
HOP = 160
FLOOR = -10.0
"""log10 of the smallest power that is told apart from silence."""


def log_mel(samples: torch.Tensor, width: int, num_frames: int | None = None) -> torch.Tensor:
    """Log-mel of one segment, zero-padded on the right to ``width`` samples.

    Frames that see only the zero padding are not computed: their value is known.

    Args:
        samples: float32 [L], 1 <= L <= width, on the device of the result.
        width: samples after padding, a multiple of 160 and more than 200.
        num_frames: how many frames to return, at most ``width // 160``, which is also the default.

    Returns:
        float32 [128, num_frames].
    """
    num_frames = width // HOP if num_frames is None else num_frames
    sounding = min(-(-(len(samples) + NUM_FFT // 2) // HOP), width // HOP)
    # Reflection at the right edge reaches back 200 samples from `width`; what lies beyond it is never read.
    end = min(width, sounding * HOP + NUM_FFT // 2)
    padded = F.pad(samples, (0, end - len(samples)))
    padded = F.pad(padded[None], (NUM_FFT // 2, NUM_FFT // 2), mode="reflect")[0]
    frames = padded[: (sounding - 1) * HOP + NUM_FFT].unfold(0, NUM_FFT, HOP)
    power = torch.fft.rfft(frames * _hann(samples.device)).abs().square()
    mel = (_filters(samples.device) @ power.T).clamp(min=10.0**FLOOR).log10()
    lowest = mel.max() - 8.0
    out = mel.new_empty(NUM_MELS, num_frames)  # the one tensor of 30 s: others would cost more than what is in them
    out[:, :sounding] = (torch.maximum(mel, lowest)[:, :num_frames] + 4.0) / 4.0
    out[:, sounding:] = (lowest.clamp(min=FLOOR) + 4.0) / 4.0
    return out


@lru_cache(maxsize=1)
def mel_filters() -> np.ndarray:
    """Triangular filters on Slaney's mel scale, 0 to 8000 Hz, unit area each: float64 [128, 201]."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(0.0), _hz_to_mel(SAMPLE_RATE_IN / 2), NUM_MELS + 2))
    bins = np.linspace(0.0, SAMPLE_RATE_IN / 2, NUM_FFT // 2 + 1)
    widths = np.diff(edges)
    distance = edges[:, None] - bins[None, :]
    rising = -distance[:-2] / widths[:-1, None]
    falling = distance[2:] / widths[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def hann_window() -> np.ndarray:
    """Periodic Hann window, float64 [400]."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(NUM_FFT) / NUM_FFT)


_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = _LOG_FROM_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_FROM_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return _LOG_FROM_MEL + np.log(hz / _LOG_FROM_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    logarithmic = _LOG_FROM_HZ * np.exp(_LOG_STEP * (mel - _LOG_FROM_MEL))
    return np.where(mel < _LOG_FROM_MEL, mel * _LINEAR_HZ_PER_MEL, logarithmic)


@lru_cache(maxsize=8)
def _filters(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(mel_filters()).to(torch.float32).to(device)


@lru_cache(maxsize=8)
def _hann(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(hann_window()).to(torch.float32).to(device)
