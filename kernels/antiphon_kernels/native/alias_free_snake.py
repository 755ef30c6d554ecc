"""Native anti-aliased SnakeBeta in one pass."""

from __future__ import annotations

import torch

from .. import _native
from ..alias_free_snake import alias_free_snake
from .arguments import DTYPES, fits


@alias_free_snake.backend("native", devices=("cpu",), supports=lambda x, *parameters: fits(x))
def native_alias_free_snake(
    x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor
) -> torch.Tensor:
    """x [N, C, T]; alpha, inv_beta [C]; filters [12] → [N, C, T]."""
    x = x.contiguous()
    batch, channels, length = x.shape
    parameters = [p.to(torch.float32).contiguous() for p in (alpha, inv_beta, up_filter, down_filter)]
    out = torch.empty_like(x)
    _native.alias_free_snake(
        DTYPES[x.dtype],
        x.data_ptr(),
        *(p.data_ptr() for p in parameters),
        out.data_ptr(),
        batch * channels,
        channels,
        length,
    )
    return out
