"""SwiGLU: the gate and up halves of one packed projection.

    y = silu(x[:, :I]) * x[:, I:]

Shapes: x [T, 2I], result [T, I] in x's dtype. silu is rounded to x's dtype before the product, as Qwen2 does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator
from .triton_support import cdiv, jit, launch, row_contiguous, supported_dtype, tl


def reference(x: torch.Tensor) -> torch.Tensor:
    """The formula above."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


@jit
def silu_mul_rounded(gate, up, dtype: tl.constexpr):
    """silu(gate) * up of float32 values with the formula's two roundings; result in ``dtype``."""
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    return (silu * up).to(dtype)


@jit
def silu_mul_kernel(x, out, x_stride, width: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    gate = tl.load(x + row * x_stride + cols, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + width + cols, inside, 0.0).to(tl.float32)
    tl.store(out + row * width + cols, silu_mul_rounded(gate, up, out.dtype.element_ty), inside)


def silu_mul_triton(x: torch.Tensor) -> torch.Tensor:
    """Launch over [T, I / 1024] programs; rows of x may be strided."""
    x = row_contiguous(x)
    num_rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
    launch(silu_mul_kernel, (num_rows, cdiv(width, 1024)), x, out, x.stride(0), width=width, BLOCK=1024)
    return out


def fake(x):
    return x.new_empty(x.shape[0], x.shape[1] // 2)


silu_mul = Operator("silu_mul", "(Tensor x) -> Tensor", reference=reference, fake=fake)
silu_mul.backend("triton", devices=("cuda",), supports=supported_dtype)(silu_mul_triton)
