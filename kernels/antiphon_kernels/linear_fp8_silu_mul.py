"""The first half of a SwiGLU MLP with float8 weights, in branch form: both products and the activation in one pass.

    y = silu(x @ gate[branch].T) * (x @ up[branch].T)

Shapes: x [T, in]; weight float8_e4m3fn [B, 2I, in], rows gate | up; scale float32 [B, 2I]; result [T, I] in
x's dtype. The result is that of ``silu_mul(linear_fp8(x, weight, scale))``: both products are rounded to x's dtype first.
"""

from __future__ import annotations

import torch

from .linear_fp8 import launch_linear_fp8, linear_fp8, linear_fp8_supported
from .operator import Operator
from .silu_mul import silu_mul


def reference(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, split: int) -> torch.Tensor:
    """The two operators one after the other, each with its own best implementation."""
    return silu_mul(linear_fp8(x, weight, scale, None, split))


def linear_fp8_silu_mul_triton(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, split: int
) -> torch.Tensor:
    """Two launches: T programs that quantise rows, then the product for both branches and both halves."""
    return launch_linear_fp8(x, weight, scale, None, split, gated=True)


def fake(x, weight, scale, split):
    return x.new_empty(x.shape[0], weight.shape[1] // 2)


linear_fp8_silu_mul = Operator(
    "linear_fp8_silu_mul",
    "(Tensor x, Tensor weight, Tensor scale, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
linear_fp8_silu_mul.backend("triton", devices=("cuda",), supports=linear_fp8_supported)(
    linear_fp8_silu_mul_triton
)
