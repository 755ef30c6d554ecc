"""Residual add fused with the RMS norm that follows it, in branch form.

    r = x + residual;  y = rms_norm(r)

Shapes: x, residual [T, H]; weight [B, H]; result (y, r), both [T, H] in x's dtype. The sum is rounded to x's dtype
before the norm reads it, so fused and unfused agree to the bit.
"""

from __future__ import annotations

import torch

from .branches import check_split
from .operator import Operator
from .rms_norm import normalise_row, num_warps_for
from .rms_norm import reference as norm
from .triton_support import check, jit, launch, next_power_of_2, row_contiguous, supported_dtype, tl


def reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, split: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add, then norm."""
    total = x + residual
    return norm(total, weight, split, eps), total


@jit(varying=("split",))
def add_rms_norm_kernel(
    x, residual, weight, out, total, x_stride, residual_stride, split, eps, hidden: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: one row. The norm reads the rounded sum."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < hidden
    branch = (row >= split).to(tl.int32)
    w = tl.load(weight + branch * hidden + cols, inside, 0.0)
    a = tl.load(x + row * x_stride + cols, inside, 0.0).to(tl.float32)
    b = tl.load(residual + row * residual_stride + cols, inside, 0.0).to(tl.float32)
    rounded = (a + b).to(total.dtype.element_ty)
    tl.store(total + row * hidden + cols, rounded, inside)
    tl.store(out + row * hidden + cols, normalise_row(rounded.to(tl.float32), w, eps, hidden), inside)


def add_rms_norm_triton(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, split: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch over T programs; rows of x and residual may be strided."""
    check_split(weight, x.shape[0], split)
    check(weight.is_contiguous() and x.dtype == residual.dtype == weight.dtype, "weight: contiguous; one dtype throughout")
    x, residual = row_contiguous(x), row_contiguous(residual)
    num_rows, hidden = x.shape
    out = torch.empty(num_rows, hidden, dtype=x.dtype, device=x.device)
    total = torch.empty(num_rows, hidden, dtype=x.dtype, device=x.device)
    block = next_power_of_2(hidden)
    launch(
        add_rms_norm_kernel, (num_rows,), x, residual, weight, out, total, x.stride(0), residual.stride(0), split, eps,
        num_warps=num_warps_for(block), hidden=hidden, BLOCK=block,
    )  # fmt: skip
    return out, total


def fake(x, residual, weight, split, eps):
    return torch.empty_like(x), torch.empty_like(x)


add_rms_norm = Operator(
    "add_rms_norm",
    "(Tensor x, Tensor residual, Tensor weight, int split, float eps) -> (Tensor, Tensor)",
    reference=reference,
    fake=fake,
)
add_rms_norm.backend(
    "triton",
    devices=("cuda",),
    supports=lambda x, residual, weight, *_: supported_dtype(x) and x.dtype == residual.dtype == weight.dtype,
)(add_rms_norm_triton)
