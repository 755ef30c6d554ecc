"""One explicit Euler step of the flow-matching ODE.

    out = x + dt * v

Source: reference behaviour, section 11. Shapes: x, v and the result [T, num_mels]; the result has x's dtype, product and sum
are computed in float32 (float64 for float64) and rounded once. dt is a float32 difference of grid times.
"""

from __future__ import annotations

import torch

from .layer_norm_modulate import accumulation_dtype
from .operator import Operator
from .triton_support import cdiv, check, jit, launch, supported_dtype, tl


def reference(x: torch.Tensor, v: torch.Tensor, dt: float) -> torch.Tensor:
    """The formula above."""
    wide = accumulation_dtype(x.dtype)
    return (x.to(wide) + dt * v.to(wide)).to(x.dtype)


@jit
def euler_step_kernel(x, v, out, size, dt, BLOCK: tl.constexpr):
    """One program: BLOCK values."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + at, inside, 0.0).to(tl.float32) + dt * tl.load(v + at, inside, 0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def euler_step_triton(x: torch.Tensor, v: torch.Tensor, dt: float) -> torch.Tensor:
    """Launch over all values as one row."""
    check(x.shape == v.shape, "x, v: one shape")
    x, v = x.contiguous(), v.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(euler_step_kernel, (cdiv(x.numel(), 1024),), x, v, out, x.numel(), dt, BLOCK=1024)
    return out


def fake(x, v, dt):
    return torch.empty_like(x)


euler_step = Operator("euler_step", "(Tensor x, Tensor v, float dt) -> Tensor", reference=reference, fake=fake)
euler_step.backend("triton", devices=("cuda",), supports=lambda x, v, dt: supported_dtype(x, v))(euler_step_triton)
