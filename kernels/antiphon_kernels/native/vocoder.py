"""BigVGAN bound to native code: convolutions with packed weights, residual blocks of a stage as one call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .. import _native
from ..conv1d import conv1d
from .arguments import DTYPES, fits
from .conv1d import AmpBlocks, PackedConv

ACTIVATION = ("act.alpha", "act.inv_beta", "upsample.filter", "downsample.lowpass.filter")


def available_for(config, weights: Mapping[str, Tensor]) -> bool:
    """True if all convolutions have one native dtype, odd kernels, and upsampling to exactly rate times the length."""
    convolutions = [w for name, w in weights.items() if name.endswith("weight")]
    exact = all(
        (k - rate) % 2 == 0 for k, rate in zip(config.upsample_kernel_sizes, config.upsample_rates, strict=True)
    )
    odd = all(k % 2 == 1 for k in config.resblock_kernel_sizes)
    return exact and odd and fits(*convolutions)


def chosen() -> bool:
    """True if convolutions run natively unless told otherwise."""
    return conv1d.backends("cpu")[0] == "native"


def packed_bytes(num_bytes: int, dtype: torch.dtype) -> int:
    """Bytes of packed convolutions for ``num_bytes`` of weights, at most where channels fill blocks of 32; Winograd's tiles take
    up to seven numbers for three taps."""
    return num_bytes * 7 // 3 if dtype in DTYPES and _native.prefers_winograd(DTYPES[dtype]) else num_bytes


class BoundVocoder:
    """What ``models/bigvgan.py`` runs instead of single operators; ``config`` and ``weights`` are the generator's.

    conv_pre: mel [N, num_mels, T] → [N, C, T]; ups[i]: [N, C, T] → [N, C / 2, rate T]; stages[i]: the mean of stage i's
    residual blocks, shape kept.
    """

    def __init__(self, config, weights: Mapping[str, Tensor]):
        self.conv_pre = PackedConv(weights["conv_pre.weight"], weights["conv_pre.bias"])
        shapes = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        self.ups = [
            PackedConv(*_pair(weights, f"ups.{i}.0"), stride=rate, padding=(kernel - rate) // 2)
            for i, (rate, kernel) in enumerate(shapes)
        ]
        self.stages = [_stage(config, weights, i) for i in range(len(self.ups))]


def _stage(config, weights: Mapping[str, Tensor], stage: int) -> AmpBlocks:
    num_blocks = len(config.resblock_kernel_sizes)
    convs, activations = [], []
    for kind, dilations in enumerate(config.resblock_dilation_sizes):
        name = f"resblocks.{stage * num_blocks + kind}"
        for layer, dilation in enumerate(dilations):
            convs.append((*_pair(weights, f"{name}.convs1.{layer}"), dilation))
            convs.append((*_pair(weights, f"{name}.convs2.{layer}"), 1))
            for place in (2 * layer, 2 * layer + 1):
                activations.append([weights[f"{name}.activations.{place}.{part}"] for part in ACTIVATION])
    return AmpBlocks(num_blocks, convs, activations)


def _pair(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]
