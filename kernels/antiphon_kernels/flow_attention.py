"""DiT attention, ragged over streams: every current row sees its stream's cached window and all its current rows.

    out[r] = softmax(scale * q[r] . [K_cache | K_rows]) [V_cache | V_rows]      no causal mask

Source: reference behaviour, section 11. Shapes: q, k, v [T, heads, D], the current rows of all S streams one stream after the
other; cu_seqlens int32 [S+1], stream s owns rows [cu_seqlens[s], cu_seqlens[s+1]); k_cache, v_cache
[num_slots, window, heads, D] of one layer, slot slots[s] (int64 [S]) holds stream s, of which the rows [0, cache_lens[s])
are valid (int32 [S]; a ring buffer, the order of rows does not matter; keys are stored after rotation); max_seqlen is the
largest number of current rows; result [T, heads, D] in q's dtype. The cache is read only. Softmax and sums in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator


def reference(
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
    """One dense attention per stream, so a stream's rows do not depend on what else is in the batch."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    bounds = cu_seqlens.tolist()
    for index, (slot, cached) in enumerate(zip(slots.tolist(), cache_lens.tolist(), strict=True)):
        rows = slice(bounds[index], bounds[index + 1])
        keys = torch.cat((k_cache[slot, :cached], k[rows])) if cached else k[rows]
        values = torch.cat((v_cache[slot, :cached], v[rows])) if cached else v[rows]
        q_, k_, v_ = (t.transpose(0, 1)[None] for t in (q[rows], keys, values))
        out[rows] = F.scaled_dot_product_attention(q_, k_, v_, scale=scale)[0].transpose(0, 1)
    return out


def fake(q, k, v, cu_seqlens, k_cache, v_cache, slots, cache_lens, max_seqlen, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


flow_attention = Operator(
    "flow_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Tensor k_cache, Tensor v_cache, Tensor slots, Tensor cache_lens, "
    "int max_seqlen, float scale) -> Tensor",
    reference=reference,
    fake=fake,
)
