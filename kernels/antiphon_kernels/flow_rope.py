"""Rotary embedding of the flow-matching DiT: neighbouring pairs, absolute positions; splits the packed qkv on the way.

    (a, b) = (x[2i], x[2i+1]);  rotated = (a cos_i - b sin_i, a sin_i + b cos_i),  angle = position * base^(-2i/D)

Source: reference behaviour, section 11. Shapes: qkv [T, 3 * heads * D], blocks q | k | v, heads inside each; positions
int64 [T]; cos, sin float32 [max_positions, D/2]; result q, k, v [T, heads, D] in qkv's dtype, three new tensors (v copied:
an operator's outputs must not alias its inputs). Rotation in float32 (float64 for float64), one rounding at the store.
"""

from __future__ import annotations

import torch

from .layer_norm_modulate import accumulation_dtype
from .operator import Operator


def rotate_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (2i, 2i+1) of x [..., D] by angles given as cos, sin, broadcastable to [..., D/2]."""
    a, b = x.to(accumulation_dtype(x.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def reference(
    qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split, then rotate q and k together."""
    heads = qkv.view(qkv.shape[0], 3, num_heads, -1)
    rotated = rotate_neighbours(heads[:, :2], cos[positions][:, None, None], sin[positions][:, None, None])
    return (
        rotated[:, 0].contiguous(),
        rotated[:, 1].contiguous(),
        heads[:, 2].clone(memory_format=torch.contiguous_format),
    )


def fake(qkv, positions, cos, sin, num_heads):
    shape = (qkv.shape[0], num_heads, qkv.shape[1] // (3 * num_heads))
    return qkv.new_empty(shape), qkv.new_empty(shape), qkv.new_empty(shape)


flow_rope = Operator(
    "flow_rope",
    "(Tensor qkv, Tensor positions, Tensor cos, Tensor sin, int num_heads) -> (Tensor, Tensor, Tensor)",
    reference=reference,
    fake=fake,
)
