"""The first half of a SwiGLU MLP in branch form: packed gate|up projection and activation in one pass over the weights.

    y = silu(x @ gate[branch].T) * (x @ up[branch].T)

Shapes: x [T, in]; weight [B, 2I, in], rows gate | up; result [T, I] in x's dtype. Both products are accumulated in
float32 and rounded to x's dtype before the activation, so the result is that of ``silu_mul(linear(x, weight))``.
"""

from __future__ import annotations

import torch

from .linear import launch_linear, linear, linear_supported
from .operator import Operator
from .silu_mul import silu_mul


def reference(x: torch.Tensor, weight: torch.Tensor, split: int) -> torch.Tensor:
    """The two operators one after the other, each with its own best implementation."""
    return silu_mul(linear(x, weight, None, split))


def linear_silu_mul_triton(x: torch.Tensor, weight: torch.Tensor, split: int) -> torch.Tensor:
    """One launch for both branches and both halves."""
    return launch_linear(x, weight, None, split, gated=True)


def fake(x, weight, split):
    return x.new_empty(x.shape[0], weight.shape[1] // 2)


linear_silu_mul = Operator(
    "linear_silu_mul", "(Tensor x, Tensor weight, int split) -> Tensor", reference=reference, fake=fake
)
linear_silu_mul.backend("triton", devices=("cuda",), supports=linear_supported)(linear_silu_mul_triton)
