"""Root-mean-square norm in branch form.

    y = weight[branch] * round(x / sqrt(mean(x^2) + eps))

The mean of squares is taken in float32 and the normalised value is rounded to the input's dtype before it is
multiplied by the weight, as Qwen2 does. Shapes: x [T, H], weight [B, H], result [T, H] in x's dtype.
"""

from __future__ import annotations

import torch

from .branches import check_split, per_branch
from .operator import Operator
from .triton_support import check, jit, launch, next_power_of_2, row_contiguous, supported_dtype, tl


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """One branch: x [T, H], weight [H]."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def reference(x: torch.Tensor, weight: torch.Tensor, split: int, eps: float) -> torch.Tensor:
    """The formula above, branch by branch."""
    check_split(weight, x.shape[0], split)
    return per_branch(lambda rows, branch: normalise(rows, weight[branch], eps), x, split)


@jit
def normalise_row(x, weight, eps, hidden: tl.constexpr):
    """x [BLOCK] float32, zero past ``hidden``; weight [BLOCK] in the result's dtype: the two roundings of the formula."""
    scale = tl.rsqrt(tl.sum(x * x) / hidden + eps)
    rounded = (x * scale).to(weight.dtype).to(tl.float32)
    return (weight.to(tl.float32) * rounded).to(weight.dtype)


@jit(varying=("split",))
def rms_norm_kernel(x, weight, out, x_stride, split, eps, hidden: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < hidden
    branch = (row >= split).to(tl.int32)
    w = tl.load(weight + branch * hidden + cols, inside, 0.0)
    value = tl.load(x + row * x_stride + cols, inside, 0.0).to(tl.float32)
    tl.store(out + row * hidden + cols, normalise_row(value, w, eps, hidden), inside)


def num_warps_for(block: int) -> int:
    """Sixteen values per thread and row, in eights: two 128-bit loads of a 16-bit dtype."""
    return min(max(block // 512, 1), 16)


def rms_norm_triton(x: torch.Tensor, weight: torch.Tensor, split: int, eps: float) -> torch.Tensor:
    """Launch over T programs; rows of x may be strided."""
    check_split(weight, x.shape[0], split)
    check(weight.is_contiguous() and weight.dtype == x.dtype, "weight: contiguous, x's dtype")
    x = row_contiguous(x)
    num_rows, hidden = x.shape
    out = torch.empty(num_rows, hidden, dtype=x.dtype, device=x.device)
    block = next_power_of_2(hidden)
    launch(
        rms_norm_kernel, (num_rows,), x, weight, out, x.stride(0), split, eps, num_warps=num_warps_for(block), hidden=hidden,
        BLOCK=block,
    )  # fmt: skip
    return out


def fake(x, weight, split, eps):
    return torch.empty_like(x)


rms_norm = Operator(
    "rms_norm", "(Tensor x, Tensor weight, int split, float eps) -> Tensor", reference=reference, fake=fake
)
rms_norm.backend("triton", devices=("cuda",), supports=lambda x, weight, *_: supported_dtype(x) and weight.dtype == x.dtype)(
    rms_norm_triton
)
