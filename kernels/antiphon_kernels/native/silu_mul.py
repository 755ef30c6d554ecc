"""Native SwiGLU."""

from __future__ import annotations

import torch

from .. import _native
from ..silu_mul import silu_mul
from .arguments import DTYPES, fits


@silu_mul.backend("native", devices=("cpu",), supports=fits)
def native_silu_mul(x: torch.Tensor) -> torch.Tensor:
    """x [T, 2I] → [T, I]."""
    x = x.contiguous()
    rows, half = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, half)
    _native.silu_mul(DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), rows, half)
    return out
