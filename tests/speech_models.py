"""Models that the speech tests share: the toy checkpoint, a vocoder small enough for property tests, and a silent one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from antiphon.checkpoint import load_flow, load_model_config, load_vocoder
from antiphon.config import HOP_OUT, VocoderConfig
from antiphon.models.bigvgan import BigVgan
from antiphon.models.flow_dit import FlowDit


@lru_cache(maxsize=8)
def load_speech(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[FlowDit, BigVgan]:
    """DiT and vocoder of a checkpoint in the official layout."""
    config = load_model_config(folder)
    return FlowDit(config.flow, load_flow(config, dtype)), BigVgan(config.vocoder, load_vocoder(config, dtype))


SMALL_VOCODER = VocoderConfig(
    num_mels=80,
    upsample_rates=(5, 2, 2, 2, 2, 3, 2),
    upsample_kernel_sizes=(9, 4, 4, 4, 4, 5, 4),
    upsample_initial_channel=128,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 2),),
    use_tanh_at_final=True,
    use_bias_at_final=True,
    snake_logscale=True,
    sample_rate=24_000,
)


@lru_cache(maxsize=1)
def small_vocoder() -> BigVgan:
    """Random weights, hop 480, one residual block a stage: a receptive field of a few frames."""
    generator = torch.Generator().manual_seed(7)
    weights: dict[str, torch.Tensor] = {}

    def normal(name: str, *shape: int, gain: float = 1.0) -> None:
        fan = max(1, int(np.prod(shape[1:])))
        weights[name] = torch.randn(shape, generator=generator) * gain * fan**-0.5

    def convolution(name: str, out: int, inp: int, kernel: int, gain: float = 1.0) -> None:
        normal(f"{name}.weight", out, inp, kernel, gain=gain)
        normal(f"{name}.bias", out, gain=0.1)

    def activation(name: str, channels: int) -> None:
        weights[f"{name}.act.alpha"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.act.inv_beta"] = torch.rand(channels, generator=generator) * 0.3
        for part in ("upsample.filter", "downsample.lowpass.filter"):
            weights[f"{name}.{part}"] = half_band_taps()

    config, channels = SMALL_VOCODER, SMALL_VOCODER.upsample_initial_channel
    convolution("conv_pre", channels, config.num_mels, 7)
    for stage, kernel in enumerate(config.upsample_kernel_sizes):
        normal(f"ups.{stage}.0.weight", channels, channels // 2, kernel, gain=0.9)
        channels //= 2
        normal(f"ups.{stage}.0.bias", channels, gain=0.1)
        for index in range(2):
            activation(f"resblocks.{stage}.activations.{2 * index}", channels)
            activation(f"resblocks.{stage}.activations.{2 * index + 1}", channels)
            convolution(f"resblocks.{stage}.convs1.{index}", channels, channels, 3)
            convolution(f"resblocks.{stage}.convs2.{index}", channels, channels, 3, gain=0.3)
    activation("activation_post", channels)
    convolution("conv_post", 1, channels, 7, gain=0.5)
    return BigVgan(config, weights)


def half_band_taps() -> torch.Tensor:
    """The 12 taps of every anti-aliased activation (reference behaviour, section 13)."""
    half = [0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.44320980]
    return torch.tensor(half + half[::-1])


class SilentVocoder:
    """Takes the vocoder's place where only mels matter; notes how many frames it was given and the first of them."""

    def __init__(self, config: VocoderConfig):
        self.config = config
        self.seen: list[torch.Tensor] = []

    def run(self, mels):
        self.seen += mels
        return [torch.zeros(HOP_OUT * len(mel)) for mel in mels]


def pooled_noise(pool: np.ndarray, num_tokens: int, chunk: int = 30, look_ahead: int = 12) -> list[np.ndarray]:
    """How every golden consumes the noise pool: a chunk of n rows takes the next n rows."""
    arrays, used, carried = [], 0, 0
    for start in range(0, num_tokens, chunk):
        rows = 4 * (carried + min(chunk, num_tokens - start))
        arrays.append(pool[used : used + rows])
        used, carried = used + rows, look_ahead
    return arrays


def rms_ratio(value: np.ndarray, golden: np.ndarray) -> float:
    """sqrt(mean(difference^2) / mean(golden^2))."""
    return float(np.sqrt(np.mean((value - golden) ** 2) / np.mean(golden**2)))
