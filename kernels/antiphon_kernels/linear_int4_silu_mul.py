"""The first half of a SwiGLU MLP with int4 weights, in branch form: both products and the activation in one pass.

    y = silu(x @ gate[branch].T) * (x @ up[branch].T)

Shapes: x [T, in]; weight uint8 [B, 2I, in / 2], rows gate | up, packed as in ``linear_int4``; scale bfloat16
[B, in / 128, 2I]; result [T, I] in x's dtype. The result is that of ``silu_mul(linear_int4(x, weight, scale))``: both products are rounded to x's dtype first.
"""

from __future__ import annotations

import torch

from .linear_int4 import launch_linear_int4, linear_int4, linear_int4_supported
from .operator import Operator
from .silu_mul import silu_mul


def reference(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, split: int) -> torch.Tensor:
    """The two operators one after the other, each with its own best implementation."""
    return silu_mul(linear_int4(x, weight, scale, None, split))


def linear_int4_silu_mul_triton(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, split: int
) -> torch.Tensor:
    """One launch for both branches and both halves."""
    return launch_linear_int4(x, weight, scale, None, split, gated=True)


def fake(x, weight, scale, split):
    return x.new_empty(x.shape[0], weight.shape[1] // 2)


linear_int4_silu_mul = Operator(
    "linear_int4_silu_mul",
    "(Tensor x, Tensor weight, Tensor scale, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
linear_int4_silu_mul.backend("triton", devices=("cuda",), supports=linear_int4_supported)(
    linear_int4_silu_mul_triton
)
