"""One explicit Euler step of the flow-matching ODE.

    out = x + dt * v

Source: reference behaviour, section 11. Shapes: x, v and the result [T, num_mels]; the result has x's dtype, product and sum
are computed in float32 (float64 for float64) and rounded once. dt is a float32 difference of grid times.
"""

from __future__ import annotations

import torch

from .layer_norm_modulate import accumulation_dtype
from .operator import Operator


def reference(x: torch.Tensor, v: torch.Tensor, dt: float) -> torch.Tensor:
    """The formula above."""
    wide = accumulation_dtype(x.dtype)
    return (x.to(wide) + dt * v.to(wide)).to(x.dtype)


def fake(x, v, dt):
    return torch.empty_like(x)


euler_step = Operator("euler_step", "(Tensor x, Tensor v, float dt) -> Tensor", reference=reference, fake=fake)
