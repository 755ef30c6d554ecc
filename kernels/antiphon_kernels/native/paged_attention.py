"""Native paged attention: one kernel for the sequences with one row, another for the prefill chunks of the batch.

So a decoding sequence's row is computed in the same way whatever else is in the batch.
"""

from __future__ import annotations

import torch

from .. import _native
from ..paged_attention import paged_attention
from .arguments import DTYPES, are, fits


def supports(q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, scale) -> bool:
    return fits(q, k_cache, v_cache) and are(q.dtype, k_cache, v_cache)


@paged_attention.backend("native", devices=("cpu",), supports=supports)
def native_paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
) -> torch.Tensor:
    """q [T, Hq, D] over pages [pages, page_size, Hkv, D] → [T, Hq, D]."""
    q, tables = q.contiguous(), block_tables.to(torch.int32).contiguous()
    starts, lengths = cu_seqlens_q.to(torch.int32).contiguous(), seq_lens.to(torch.int32).contiguous()
    out = torch.empty_like(q)
    page_size, num_kv_heads, head_dim = k_cache.shape[1:]
    _native.paged_attention(
        DTYPES[q.dtype],
        *(t.data_ptr() for t in (q, k_cache, v_cache, tables, starts, lengths, out)),
        *(tables.shape[0], tables.stride(0), page_size, q.shape[1], num_kv_heads, head_dim),
        scale,
    )
    return out
