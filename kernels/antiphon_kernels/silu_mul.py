"""SwiGLU: the gate and up halves of one packed projection.

    y = silu(x[:, :I]) * x[:, I:]

Shapes: x [T, 2I], result [T, I] in x's dtype. silu is rounded to x's dtype before the product, as Qwen2 does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator


def reference(x: torch.Tensor) -> torch.Tensor:
    """The formula above."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def fake(x):
    return x.new_empty(x.shape[0], x.shape[1] // 2)


silu_mul = Operator("silu_mul", "(Tensor x) -> Tensor", reference=reference, fake=fake)
