"""Linear map with int8 weights, one scale per output channel, in branch form.

    y = (x @ weight[branch].T) * scale[branch] + bias[branch]

Shapes: x [T, in]; weight int8 [B, out, in]; scale float32 [B, out]; bias [B, out] or None; result [T, out] in x's dtype.
Sums in float32 or exacter. :func:`quantize` rounds to nearest, symmetric: |w| = 127 is the largest of its row.
"""

from __future__ import annotations

import torch

from .linear import reference as dense
from .operator import Operator


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., out, in] → int8 of the same shape and float32 scales [..., out]; a row of zeros has scale 0."""
    wide = weight.float()
    scale = wide.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return (wide * inverse[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights that the quantised ones stand for."""
    return (weight.float() * scale[..., None]).to(dtype)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """A dense product with the weights in float32 (float64 for float64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = None if bias is None else bias.to(wide)
    return dense(x.to(wide), weight.to(wide) * scale.to(wide)[..., None], bias, split).to(x.dtype)


def fake(x, weight, scale, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear_int8 = Operator(
    "linear_int8",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
