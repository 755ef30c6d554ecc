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
from .paged_attention import LOG2_E, attend_block
from .triton_support import available, cdiv, check, has_wgmma, jit, launch, supported_dtype, tl


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


@jit(varying=("window_stride",))
def flow_attention_kernel(
    q,
    k,
    v,
    out,
    cu_seqlens,
    k_cache,
    v_cache,
    slots,
    cache_lens,
    window_stride,
    scale_log2,
    heads: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One program: M rows of one head of one stream; first its window, then its current rows, both in steps of N."""
    stream, head = tl.program_id(2), tl.program_id(1)
    first_row = tl.load(cu_seqlens + stream)
    num_rows = tl.load(cu_seqlens + stream + 1) - first_row
    start = tl.program_id(0) * M
    if start >= num_rows:
        return
    rows = start + tl.arange(0, M)
    held = (rows < num_rows)[:, None]
    offsets = ((first_row + rows).to(tl.int64) * heads + head)[:, None] * D + tl.arange(0, D)[None, :]
    query = tl.load(q + offsets, held, 0.0)
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    cached = tl.load(cache_lens + stream)
    base = tl.load(slots + stream) * window_stride
    for first in range(0, cached, N):
        keys = first + tl.arange(0, N)
        inside = keys < cached
        where = base + (keys.to(tl.int64) * heads + head) * D
        m, total, acc = attend_block(query, k_cache, v_cache, where, inside, inside[None, :], m, total, acc, scale_log2, D)
    for first in range(0, num_rows, N):
        keys = first + tl.arange(0, N)
        inside = keys < num_rows
        where = ((first_row + keys).to(tl.int64) * heads + head) * D
        m, total, acc = attend_block(query, k, v, where, inside, inside[None, :], m, total, acc, scale_log2, D)
    tl.store(out + offsets, (acc / total[:, None]).to(out.dtype.element_ty), held)


def flow_attention_triton(
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
    """Launch over [row tiles, heads, streams] programs; windows contiguous."""
    check(k_cache.is_contiguous() and v_cache.is_contiguous(), "windows: contiguous")
    check(q.dtype == k.dtype == v.dtype == k_cache.dtype == v_cache.dtype, "one dtype throughout")
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    heads, head_dim = q.shape[1:]
    m, n, num_warps, num_stages = row_tile(head_dim, q.dtype, has_wgmma(q))
    launch(
        flow_attention_kernel, (cdiv(max_seqlen, m), heads, slots.shape[0]), q, k, v, out, cu_seqlens, k_cache, v_cache,
        slots, cache_lens, k_cache.stride(0), scale * LOG2_E, num_warps=num_warps, num_stages=num_stages, heads=heads,
        D=head_dim, M=m, N=n,
    )  # fmt: skip
    return out


def row_tile(head_dim: int, dtype: torch.dtype, wgmma: bool) -> tuple[int, int, int, int]:
    """Rows, keys, warps and stages. A chunk has up to 168 rows, so tiles of 64 waste least."""
    if dtype == torch.float32:
        return 32, 32, 4, 1
    return (64, 64, 4, 2) if wgmma and head_dim <= 128 else (64, 32, 4, 2)


def flow_attention_supported(q, k, v, cu_seqlens, k_cache, v_cache, *_) -> bool:
    """One dtype, head dimension a power of two from 16 on, contiguous windows."""
    head_dim = q.shape[-1]
    fits = head_dim >= 16 and head_dim & (head_dim - 1) == 0 and k_cache.is_contiguous() and v_cache.is_contiguous()
    return available and fits and supported_dtype(q) and q.dtype == k.dtype == v.dtype == k_cache.dtype == v_cache.dtype


def fake(q, k, v, cu_seqlens, k_cache, v_cache, slots, cache_lens, max_seqlen, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


flow_attention = Operator(
    "flow_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Tensor k_cache, Tensor v_cache, Tensor slots, Tensor cache_lens, "
    "int max_seqlen, float scale) -> Tensor",
    reference=reference,
    fake=fake,
)
flow_attention.backend("triton", devices=("cuda",), supports=flow_attention_supported)(flow_attention_triton)
