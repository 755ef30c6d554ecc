"""Native GELU."""

from __future__ import annotations

import torch

from .. import _native
from ..gelu import gelu
from .arguments import DTYPES, fits


@gelu.backend("native", devices=("cpu",), supports=lambda x, tanh: fits(x))
def native_gelu(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    """x of any shape → the same shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _native.gelu(DTYPES[x.dtype], x.data_ptr(), out.data_ptr(), x.numel(), tanh)
    return out
