"""Native linear: few rows (decode) bound by one read of the weights, many rows (prefill, encoders, flow) by arithmetic.

"Few" is counted per branch: :data:`MAX_ROWS`, kMaxSkinnyRows in csrc/cpu/kernels.h. Many rows are ours in bfloat16 where the
processor has tiles (AMX), with the same result for a row as among few; elsewhere they stay with oneDNN.
"""

from __future__ import annotations

import torch

from .. import _native
from ..branches import check_split
from ..linear import linear, reference
from .arguments import DTYPES, fits, pointer

MAX_ROWS = 16
TILE_DEPTH = 32
"""Columns of x and W in a tile; the wide kernel takes multiples of it."""


def supports(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> bool:
    return fits(x, weight) and weight.is_contiguous() and (bias is None or fits(x, bias))


def wide_is_faster(x: torch.Tensor) -> bool:
    """True where many rows are better served by :func:`wide_linear` than by oneDNN."""
    return x.dtype == torch.bfloat16 and x.shape[1] % TILE_DEPTH == 0 and _native.isa() == "amx"


@linear.backend("native", devices=("cpu",), supports=supports)
def native_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """x [T, in], weight [B, out, in], bias [B, out] → [T, out]."""
    rows = x.shape[0]
    if max(split, rows - split) <= MAX_ROWS:
        return skinny_linear(x, weight, bias, split)
    return (wide_linear if wide_is_faster(x) else reference)(x, weight, bias, split)


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """At most :data:`MAX_ROWS` rows of each branch."""
    x, bias, out = _prepare(x, weight, bias, split)
    n, k = weight.shape[1:]
    if len(x):
        _native.linear(
            DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            len(x),
            split,
            n,
            k,
        )
    return out


def wide_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """Any number of rows; in must be a multiple of :data:`TILE_DEPTH`."""
    x, bias, out = _prepare(x, weight, bias, split)
    n, k = weight.shape[1:]
    dtype = DTYPES[x.dtype]
    workspace = torch.empty(_native.linear_wide_workspace(dtype, len(x), split, k), dtype=torch.bfloat16)
    if len(x):
        _native.linear_wide(
            dtype,
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            workspace.data_ptr(),
            len(x),
            split,
            n,
            k,
        )
    return out


def _prepare(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """x with contiguous rows, contiguous bias, and the output."""
    check_split(weight, x.shape[0], split)
    if x.stride(1) != 1:
        x = x.contiguous()
    return x, None if bias is None else bias.contiguous(), x.new_empty(x.shape[0], weight.shape[1])
