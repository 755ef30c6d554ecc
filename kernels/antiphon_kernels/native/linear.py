"""Native linear: few rows (decode) bound by one read of the weights; many rows (prefill) stay with oneDNN.

"Few" is counted per branch: :data:`MAX_ROWS`, kMaxSkinnyRows in csrc/cpu/kernels.h.
"""

from __future__ import annotations

import torch

from .. import _native
from ..branches import check_split
from ..linear import linear, reference
from .arguments import DTYPES, fits, pointer

MAX_ROWS = 16


def supports(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> bool:
    return fits(x, weight) and weight.is_contiguous() and (bias is None or fits(x, bias))


@linear.backend("native", devices=("cpu",), supports=supports)
def native_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """x [T, in], weight [B, out, in], bias [B, out] → [T, out]."""
    rows = x.shape[0]
    if max(split, rows - split) > MAX_ROWS:
        return reference(x, weight, bias, split)
    check_split(weight, rows, split)
    if x.stride(1) != 1:
        x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    n, k = weight.shape[1:]
    out = x.new_empty(rows, n)
    if rows:
        _native.linear(
            DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            rows,
            split,
            n,
            k,
        )
    return out
