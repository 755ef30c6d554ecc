"""Random weights that keep activations of order one, a function of seed, part and key alone."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..config import ModelConfig

CHUNK = 1 << 22
QUIET = 0.1
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation of a tensor's entries.

    With ``signs`` they are mean ± std, so that rows have equal norms; entries [start, stop) of ``quiet``, counted in
    the flat tensor, are a tenth of that.
    """

    mean: float
    std: float
    signs: bool = False
    quiet: tuple[int, int] = (0, 0)


Rule = Callable[[str, Shape], Normal]


def values(seed: int, part: str, key: str, shape: Shape, dtype: torch.dtype, rule: Normal) -> Iterator[torch.Tensor]:
    """The tensor ``key`` flat, in pieces of at most ``CHUNK`` entries, so that a large one never exists as float32."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{part}/{key}".encode()))
    total = math.prod(shape)
    for begin in range(0, total, CHUNK):
        piece = torch.randn(min(CHUNK, total - begin), generator=generator)
        (piece.sign_() if rule.signs else piece).mul_(rule.std).add_(rule.mean)
        start, stop = (max(edge - begin, 0) for edge in rule.quiet)
        piece[start:stop] *= QUIET
        yield piece.to(dtype)


def llm_rule(config: ModelConfig) -> Rule:
    """Unit-variance embeddings and projections; what adds to the residual stream is scaled down by its depth.

    Each head is loud for its own ids only, so text stays text, audio stays audio, and neither stream ends by chance:
    a run is as long as its limit.
    """
    c = config.llm
    residual = 1 / math.sqrt(2 * c.num_layers)
    quiet = {
        "lm_head.weight": ((c.special.msg_end - 2) * c.hidden_size, c.vocab_size * c.hidden_size),
        "mimo_output.weight": (0, c.audio_token_offset * c.hidden_size),
    }

    def rule(key: str, shape: Shape) -> Normal:
        if "norm" in key or key == "model.vq_adaptor.layers.4.weight":
            return Normal(1.0, 0.1)
        if key.endswith("bias"):
            return Normal(0.0, 0.02)
        if "embed_tokens" in key:
            return Normal(0.0, math.sqrt(0.5))
        gain = residual if "o_proj" in key or "down_proj" in key else 1.0
        return Normal(0.0, gain * _fan_in(shape), quiet=quiet.get(key, (0, 0)))

    return rule


def encoder_rule(num_layers: int) -> Rule:
    """As :func:`llm_rule`, for a Whisper-shaped encoder and its codebook.

    Strong first convolution, strong positions and codes of one norm: otherwise nearly every frame gets the same code.
    """
    residual = 1 / math.sqrt(2 * num_layers)

    def rule(key: str, shape: Shape) -> Normal:
        if "layer_norm" in key:
            return Normal(1.0, 0.1) if key.endswith("weight") else Normal(0.0, 0.02)
        if key.endswith("bias"):
            return Normal(0.0, 0.02)
        if "embed_positions" in key:
            return Normal(0.0, 1.0)
        if "codebook" in key or "ema" in key:
            return Normal(0.0, 1.0, signs=True)
        if "conv1" in key:
            return Normal(0.0, 3 * _fan_in(shape))
        return Normal(0.0, _fan_in(shape) * (residual if "out_proj" in key or "fc2" in key else 1.0))

    return rule


def flow_rule(key: str, shape: Shape) -> Normal:
    """Gates and shifts of about 0.3, a velocity of order one."""
    if key.endswith("bias"):
        return Normal(0.0, 0.02)
    if "semantic_token_embedding" in key:
        return Normal(0.0, 1.0)
    return Normal(0.0, _fan_in(shape) * (0.5 if "adaLN" in key else 1.0))


def vocoder_rule(config: ModelConfig) -> Rule:
    """The norm ``g`` sets the gain: about one through convolutions, less where a block adds to its input."""
    rates = config.vocoder.upsample_rates

    def rule(key: str, shape: Shape) -> Normal:
        if key.endswith("weight_v"):
            return Normal(0.0, 1.0)
        if key.endswith("weight_g"):
            if key.startswith("ups."):
                return Normal(math.sqrt(rates[int(key.split(".")[1])] / 2), 0.0)
            return Normal(0.2 if "conv_p" in key else 1.0 if "convs1" in key else 0.2, 0.0)
        return Normal(0.0, 0.1 if ".act." in key else 0.02)

    return rule


def anti_alias_taps() -> torch.Tensor:
    """The 12 low-pass taps that every release stores: Kaiser-windowed sinc (spec section 13), float32 [12]."""
    attenuation = 2.285 * 5 * math.pi * 1.2 + 7.95
    window = torch.kaiser_window(12, periodic=False, beta=0.1102 * (attenuation - 8.7), dtype=torch.float64)
    taps = torch.sinc(0.5 * (torch.arange(12, dtype=torch.float64) - 5.5)) * window
    return (taps / taps.sum()).float()


def _fan_in(shape: Shape) -> float:
    return 1 / math.sqrt(math.prod(shape[1:]))
