"""Native rotary embedding and attention of the flow-matching DiT."""

from __future__ import annotations

import torch

from .. import _native
from ..flow_attention import flow_attention
from ..flow_rope import flow_rope
from .arguments import DTYPES, are, fits


def rope_supports(qkv, positions, cos, sin, num_heads) -> bool:
    return fits(qkv) and cos.dtype == sin.dtype == torch.float32 and are(torch.int64, positions)


@flow_rope.backend("native", devices=("cpu",), supports=rope_supports)
def native_flow_rope(
    qkv: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qkv [T, 3 * heads * D], rows may be strided → q, k, v [T, heads, D]."""
    qkv = qkv if qkv.stride(1) == 1 else qkv.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    head_dim = qkv.shape[1] // (3 * num_heads)
    q, k, v = (qkv.new_empty(len(qkv), num_heads, head_dim) for _ in range(3))
    _native.flow_rope(
        DTYPES[qkv.dtype],
        *(t.data_ptr() for t in (qkv, positions, cos, sin, q, k, v)),
        qkv.stride(0),
        len(qkv),
        num_heads,
        head_dim,
    )
    return q, k, v


def attention_supports(q, k, v, cu_seqlens, k_cache, v_cache, slots, cache_lens, *_) -> bool:
    return (
        fits(q, k, v)
        and are(q.dtype, k_cache, v_cache)
        and are(torch.int32, cu_seqlens, cache_lens)
        and are(torch.int64, slots)
    )


@flow_attention.backend("native", devices=("cpu",), supports=attention_supports)
def native_flow_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    cache_lens: torch.Tensor,
    max_seqlen: int,
    scale: float,
) -> torch.Tensor:
    """q, k, v [T, heads, D] and windows [slots, window, heads, D] → [T, heads, D]."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    _native.flow_attention(
        DTYPES[q.dtype],
        *(t.data_ptr() for t in (q, k, v, cu_seqlens, k_cache, v_cache, slots, cache_lens, out)),
        len(slots),
        k_cache.shape[1],
        *q.shape[1:],
        scale,
    )
    return out
