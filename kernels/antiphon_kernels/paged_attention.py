"""Causal attention of a ragged batch (prefill chunks and decodes mixed) over a paged key/value cache, with GQA.

    out[i] = softmax(scale * q[i] K[:p+1]^T) V[:p+1],  p = seq_len - q_len + (i - cu_seqlens_q[s])

Query head h reads key head h // (Hq / Hkv). Source: reference behaviour, section 8. Shapes: q [T, Hq, D]; k_cache,
v_cache [pages, page_size, Hkv, D] of one layer; block_tables int32 [S, max_pages], entries past a sequence's last
page unread; cu_seqlens_q int32 [S + 1]; seq_lens int32 [S], context length including this step's rows; result like q.
A row's result depends on its own sequence only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator


def gather_pages(cache: torch.Tensor, pages: torch.Tensor, length: int) -> torch.Tensor:
    """The first ``length`` entries of a sequence: cache [pages, page_size, Hkv, D] → [length, Hkv, D]."""
    return cache[pages].flatten(0, 1)[:length]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One sequence: q [n, Hq, D] are the last n of the k, v [length, Hkv, D] positions; result [n, Hq, D]."""
    n, length = q.shape[0], k.shape[0]
    mask = None
    if 1 < n < length:
        mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=n == length and n > 1,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
) -> torch.Tensor:
    """Sequence by sequence: gather its pages, attend."""
    page_size = k_cache.shape[1]
    out = torch.empty_like(q)
    starts, lengths = cu_seqlens_q.tolist(), seq_lens.tolist()
    for s, length in enumerate(lengths):
        rows = slice(starts[s], starts[s + 1])
        pages = block_tables[s, : -(-length // page_size)].long()
        k, v = gather_pages(k_cache, pages, length), gather_pages(v_cache, pages, length)
        out[rows] = attend(q[rows], k.to(q.dtype), v.to(q.dtype), scale)
    return out


def fake(q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, scale):
    return torch.empty_like(q)


paged_attention = Operator(
    "paged_attention",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_tables, Tensor cu_seqlens_q, Tensor seq_lens, "
    "int max_seqlen_q, float scale) -> Tensor",
    reference=reference,
    fake=fake,
)
