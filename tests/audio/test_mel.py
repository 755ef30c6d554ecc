"""Log-mel features: filters and window against golden constants, frames against a plain float64 formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antiphon.audio import SEGMENT_SAMPLES, log_mel, mel_filters, num_tokens, split_segments
from antiphon.audio.mel import hann_window


def plain_log_mel(samples: np.ndarray, width: int) -> np.ndarray:
    """The five steps of the reference behaviour's section 4 in float64, [128, width / 160]."""
    padded = np.pad(np.pad(samples.astype(np.float64), (0, width - len(samples))), 200, mode="reflect")
    frames = np.stack([padded[start : start + 400] for start in range(0, width, 160)])
    power = np.abs(np.fft.rfft(frames * hann_window())) ** 2
    mel = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return (np.maximum(mel, mel.max() - 8) + 4) / 4


@pytest.fixture(scope="session")
def constants(fixtures):
    return np.load(fixtures / "golden" / "constants.npz")


@pytest.mark.parametrize("name", ["whisper_mel_filters", "glm_mel_filters"])
def test_filters_match_golden(constants, within_budget, name):
    within_budget(name, np.abs(mel_filters() - constants[name]).max(), 1e-6)


def test_window_matches_golden(constants, within_budget):
    within_budget("hann400", np.abs(hann_window() - constants["hann400"]).max(), 1e-6)


@pytest.mark.parametrize(
    "num_samples, width",
    [
        (1, 1280),  # almost nothing but padding
        (1280, 1280),  # the reflection at the right edge shows the signal
        (1081, 1280),  # the first sample that the right edge reflects
        (1080, 1280),
        (5000, 5120),
        (5000, 12800),  # padding that is not computed
        (440, 1280),  # 440 + 200 is a multiple of the hop
        (441, 1280),
        (16000, SEGMENT_SAMPLES),
        (SEGMENT_SAMPLES, SEGMENT_SAMPLES),
    ],
)
def test_frames_match_the_plain_formula(num_samples, width, within_budget):
    rng = np.random.default_rng(num_samples)
    samples = (rng.standard_normal(num_samples) * 0.1).astype(np.float32)
    expected = plain_log_mel(samples, width)
    mel = log_mel(torch.from_numpy(samples), width)
    assert mel.shape == (128, width // 160) and mel.dtype == torch.float32
    within_budget(f"log-mel of {num_samples} in {width}", np.abs(mel.numpy() - expected).max(), 5e-4)
    some = log_mel(torch.from_numpy(samples), width, 3)
    assert torch.equal(some, mel[:, :3])


def test_silence_is_the_floor():
    assert torch.equal(log_mel(torch.zeros(3000), 4800), torch.full((128, 30), -1.5))


def test_loud_frames_raise_the_floor_everywhere():
    mel = log_mel(torch.sin(torch.arange(4000.0)), SEGMENT_SAMPLES)
    assert mel.min() == mel[0, -1] and abs(mel.max() - mel.min() - 2.0) < 1e-6


@pytest.mark.parametrize(
    "num_samples, segments, tokens",
    [(1, 1, 1), (1280, 1, 1), (1281, 1, 2), (480_000, 1, 375), (480_001, 2, 376), (1_040_000, 3, 813)],
)
def test_segments(num_samples, segments, tokens):
    parts = split_segments(np.zeros(num_samples, np.float32))
    assert len(parts) == segments and sum(len(part) for part in parts) == num_samples
    assert num_tokens(num_samples) == tokens == sum(num_tokens(len(part)) for part in parts)
