"""Native linear: few rows (decode), bound by one read of the weights, and any number of rows.

Rows are counted per branch. Up to :data:`MAX_ROWS` (kMaxSkinnyRows in csrc/cpu/kernels.h) they are few. More of them go through
our wide kernel: with AMX in bfloat16, where a row has the result it has among few, at 0.6 to 1.1 times oneDNN's time (docs/log.md,
2026-11-22); in vectors in both dtypes, at 1.0 to 1.1 of its time in bfloat16 with AVX512-BF16 and 0.2 to 0.95 elsewhere (2026-11-29). float32
with AMX and everything on the scalar instruction set stay with oneDNN.
"""

from __future__ import annotations

import torch

from .. import _native
from ..branches import check_split
from ..linear import linear, reference
from .arguments import DTYPES, fits, has_rows, pointer

MAX_ROWS = 16
TILE_DEPTH = 32
"""Columns of x and W in a tile; of other numbers the wide kernel makes blocks of :data:`MAX_ROWS` rows."""
NARROW = 256
"""Inputs up to which such blocks run in place of oneDNN: 1.05 to 1.6 times its time (80 to 240 inputs), for a row that has the
same result in any company. The flow network's first map is the only one."""


def supports(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> bool:
    return fits(x, weight) and has_rows(weight) and (bias is None or fits(x, bias))


def takes_many(dtype: torch.dtype, inputs: int) -> bool:
    """True where :func:`wide_linear` serves many rows of so many ``inputs`` as well as oneDNN."""
    isa = _native.isa()
    if isa == "amx":
        return dtype == torch.bfloat16 and (inputs % TILE_DEPTH == 0 or inputs <= NARROW)
    return isa != "scalar"


@linear.backend("native", devices=("cpu",), supports=supports)
def native_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """x [T, in], weight [B, out, in], bias [B, out] → [T, out]."""
    rows = max(split, x.shape[0] - split)
    if rows <= MAX_ROWS:
        return skinny_linear(x, weight, bias, split)
    return (wide_linear if takes_many(x.dtype, x.shape[1]) else reference)(x, weight, bias, split)


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """At most :data:`MAX_ROWS` rows of each branch."""
    x, bias, out = prepare(x, weight, bias, split)
    n, k = weight.shape[1:]
    if len(x):
        _native.linear(
            DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            weight.stride(1),
            pointer(bias),
            out.data_ptr(),
            len(x),
            split,
            n,
            k,
        )
    return out


def wide_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """Any number of rows."""
    x, bias, out = prepare(x, weight, bias, split)
    n, k = weight.shape[1:]
    workspace = x.new_empty(_native.linear_wide_workspace(len(x), split, k))
    if len(x):
        _native.linear_wide(
            DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            weight.stride(1),
            pointer(bias),
            out.data_ptr(),
            workspace.data_ptr(),
            len(x),
            split,
            n,
            k,
        )
    return out


def prepare(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """x with contiguous rows, contiguous bias, and the output."""
    check_split(weight, x.shape[0], split)
    if x.stride(1) != 1:
        x = x.contiguous()
    return x, None if bias is None else bias.contiguous(), x.new_empty(x.shape[0], weight.shape[1])
