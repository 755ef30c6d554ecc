"""Native rotary embedding and paged key/value write."""

from __future__ import annotations

import torch

from .. import _native
from ..rope_cache import rope_cache
from .arguments import DTYPES, are, fits


def supports(qkv, positions, cos, sin, slots, k_cache, v_cache, num_heads) -> bool:
    return (
        fits(qkv, k_cache, v_cache)
        and are(qkv.dtype, k_cache, v_cache)
        and are(torch.int64, positions, slots)
        and are(torch.float32, cos, sin)
    )


@rope_cache.backend("native", devices=("cpu",), supports=supports)
def native_rope_cache(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Writes k and v to their slots in place; returns rotated q [T, num_heads, D]."""
    qkv = qkv.contiguous()
    num_kv_heads, head_dim = k_cache.shape[-2:]
    q = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
    _native.rope_cache(
        DTYPES[qkv.dtype],
        *(t.data_ptr() for t in (qkv, positions, cos, sin, slots, k_cache, v_cache, q)),
        qkv.shape[0],
        num_heads,
        num_kv_heads,
        head_dim,
    )
    return q
