"""Linear map with int4 weights in groups of 128 input columns that share a scale, in branch form.

    y = x @ w[branch].T + bias[branch],   w[o, i] = (nibble[o, i] - 8) * scale[i // 128, o]

Shapes: x [T, in], in a multiple of 128; weight uint8 [B, out, in / 2]: 64 bytes hold a group, the low half of byte j is
column j of it, the high half column 64 + j; scale bfloat16 [B, in / 128, out]; bias [B, out] or None; result [T, out] in
x's dtype. Sums in float32 or exacter. :func:`quantize` rounds to nearest on -8..7 with the scale of least squared error
among a few.
"""

from __future__ import annotations

import torch

from .linear import reference as dense
from .operator import Operator

GROUP = 128
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Scales tried, as shares of the one that represents the largest weight of a group."""


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., out, in] → packed uint8 [..., out, in / 2] and bfloat16 scales [..., in / 128, out]."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(-1)
    best = error = scale = None
    for shrink in SHRINKS:
        candidate = (largest * (shrink / 7)).to(torch.bfloat16)
        inverse = torch.where(candidate > 0, 1 / candidate.float(), torch.zeros_like(largest))
        values = (groups * inverse[..., None]).round().clamp(-8, 7)
        loss = (values * candidate.float()[..., None] - groups).square().sum(-1)
        if error is None:
            best, error, scale = values, loss, candidate
        else:
            better = loss < error
            best = torch.where(better[..., None], values, best)
            error, scale = torch.where(better, loss, error), torch.where(better, candidate, scale)
    return pack(best), scale.transpose(-1, -2).contiguous()


def pack(values: torch.Tensor) -> torch.Tensor:
    """values [..., out, groups, 128] in -8..7 → uint8 [..., out, groups * 64]."""
    nibbles = (values + 8).to(torch.uint8)
    return (nibbles[..., :64] | nibbles[..., 64:] << 4).flatten(-2)


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights [..., out, in] that the packed ones stand for."""
    groups = weight.unflatten(-1, (-1, GROUP // 2))
    values = torch.cat((groups & 15, groups >> 4), dim=-1).to(dtype) - 8
    return (values * scale.transpose(-1, -2).to(dtype)[..., None]).flatten(-2)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """A dense product with the weights in float32 (float64 for float64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = None if bias is None else bias.to(wide)
    return dense(x.to(wide), dequantize(weight, scale, wide), bias, split).to(x.dtype)


def fake(x, weight, scale, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear_int4 = Operator(
    "linear_int4",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
