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
from .triton_support import available, cdiv, check, jit, launch, row_contiguous, supported_dtype, tl


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


@jit
def flow_rope_kernel(
    qkv, positions, cos, sin, q, k, v, qkv_stride, width: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: BLOCK columns of one row of q, k or v; ``width`` = heads * D, HALF = D / 2."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    x = tl.load(qkv + row * qkv_stride + part * width + cols, inside, 0.0)
    target = row * width + cols
    if part == 2:
        tl.store(v + target, x, inside)
    else:
        pairs = tl.program_id(2) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        angle = tl.load(positions + row) * HALF + pairs % HALF
        c, s = tl.load(cos + angle), tl.load(sin + angle)
        a, b = tl.split(tl.reshape(x.to(tl.float32), (BLOCK // 2, 2)))
        rotated = tl.reshape(tl.join(a * c - b * s, a * s + b * c), (BLOCK,)).to(x.dtype)
        if part == 0:
            tl.store(q + target, rotated, inside)
        else:
            tl.store(k + target, rotated, inside)


def flow_rope_triton(
    qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch over [T, 3, heads * D / 512] programs; rows of qkv may be strided."""
    check(cos.is_contiguous() and sin.is_contiguous(), "cos, sin: contiguous")
    qkv = row_contiguous(qkv)
    num_rows, width = qkv.shape[0], qkv.shape[1] // 3
    shape = (num_rows, num_heads, width // num_heads)
    q = torch.empty(shape, dtype=qkv.dtype, device=qkv.device)
    k = torch.empty(shape, dtype=qkv.dtype, device=qkv.device)
    v = torch.empty(shape, dtype=qkv.dtype, device=qkv.device)
    launch(
        flow_rope_kernel, (num_rows, 3, cdiv(width, 512)), qkv, positions.contiguous(), cos, sin, q, k, v, qkv.stride(0),
        num_warps=2, width=width, HALF=shape[2] // 2, BLOCK=512,
    )  # fmt: skip
    return q, k, v


def flow_rope_supported(qkv, positions, cos, sin, num_heads) -> bool:
    """float32 tables."""
    return available and supported_dtype(qkv) and cos.dtype == sin.dtype == torch.float32


def fake(qkv, positions, cos, sin, num_heads):
    shape = (qkv.shape[0], num_heads, qkv.shape[1] // (3 * num_heads))
    return qkv.new_empty(shape), qkv.new_empty(shape), qkv.new_empty(shape)


flow_rope = Operator(
    "flow_rope",
    "(Tensor qkv, Tensor positions, Tensor cos, Tensor sin, int num_heads) -> (Tensor, Tensor, Tensor)",
    reference=reference,
    fake=fake,
)
flow_rope.backend("triton", devices=("cuda",), supports=flow_rope_supported)(flow_rope_triton)
