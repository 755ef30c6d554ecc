"""Native RMS norm, plain and fused with the residual add before it."""

from __future__ import annotations

import torch

from .. import _native
from ..add_rms_norm import add_rms_norm
from ..branches import check_split
from ..rms_norm import rms_norm
from .arguments import DTYPES, fits


@rms_norm.backend("native", devices=("cpu",), supports=lambda x, weight, split, eps: fits(x, weight))
def native_rms_norm(x: torch.Tensor, weight: torch.Tensor, split: int, eps: float) -> torch.Tensor:
    """x [T, H], weight [B, H] → [T, H]."""
    check_split(weight, x.shape[0], split)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    _native.rms_norm(
        DTYPES[x.dtype], x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), 0, x.shape[0], split, x.shape[1], eps
    )
    return out


@add_rms_norm.backend("native", devices=("cpu",), supports=lambda x, r, weight, split, eps: fits(x, r, weight))
def native_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, split: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual [T, H], weight [B, H] → normed sum and sum, [T, H] each."""
    check_split(weight, x.shape[0], split)
    x, residual, weight = x.contiguous(), residual.contiguous(), weight.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    rows, hidden = x.shape
    _native.rms_norm(
        DTYPES[x.dtype],
        x.data_ptr(),
        residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        total.data_ptr(),
        rows,
        split,
        hidden,
        eps,
    )
    return out, total
