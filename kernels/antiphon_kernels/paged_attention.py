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
from .triton_support import cdiv, check, has_wgmma, is_recording, jit, launch, next_power_of_2, supported_dtype, tl


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


SPLIT = 256
"""Keys of one decode program. A constant, so that a row's sum is cut at the same places in every batch."""
LOG2_E = 1.4426950408889634
_arrival_counters: dict[torch.device, torch.Tensor] = {}


@jit
def key_offsets(tables, keys, inside, kv_head, PAGE: tl.constexpr, num_kv_heads: tl.constexpr, D: tl.constexpr):
    """Offsets of the rows of ``keys`` (positions of one sequence) in the paged cache; ``tables``: its block table."""
    page = tl.load(tables + keys // PAGE, inside, 0).to(tl.int64)
    return ((page * PAGE + keys % PAGE) * num_kv_heads + kv_head) * D


@jit
def attend_block(q, k_cache, v_cache, offsets, inside, visible, m, total, acc, scale_log2, D: tl.constexpr):
    """One online-softmax step over a block of keys: offsets and inside [N], visible [M or 1, N], running m, total [M] and
    acc [M, D]. Keys outside are not read.

    Every row has seen a key before or sees one here, so m becomes finite. A block that is hidden from a row changes nothing
    of that row, to the bit.
    """
    lanes = tl.arange(0, D)[None, :]
    k = tl.load(k_cache + offsets[:, None] + lanes, inside[:, None], 0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(visible, scores, float("-inf"))
    m_new = tl.maximum(m, tl.max(scores, 1))
    weights = tl.exp2(scores - m_new[:, None])
    decay = tl.exp2(m - m_new)
    v = tl.load(v_cache + offsets[:, None] + lanes, inside[:, None], 0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return m_new, total * decay + tl.sum(weights, 1), acc


@jit(varying=("table_stride",))
def prefill_kernel(
    q,
    k_cache,
    v_cache,
    out,
    block_tables,
    cu_seqlens_q,
    seq_lens,
    table_stride,
    scale_log2,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One program: M rows of one head of one sequence with more than one row; keys from first to last in steps of N."""
    sequence, head = tl.program_id(2), tl.program_id(1)
    first_row = tl.load(cu_seqlens_q + sequence)
    num_rows = tl.load(cu_seqlens_q + sequence + 1) - first_row
    start = tl.program_id(0) * M
    if num_rows < 2:
        return
    if start >= num_rows:
        return
    length = tl.load(seq_lens + sequence)
    rows = start + tl.arange(0, M)
    lanes = tl.arange(0, D)[None, :]
    held = (rows < num_rows)[:, None]
    offsets = ((first_row + rows).to(tl.int64) * num_heads + head)[:, None] * D + lanes
    query = tl.load(q + offsets, held, 0.0)
    positions = length - num_rows + rows
    tables = block_tables + sequence.to(tl.int64) * table_stride
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    end = tl.minimum(length, length - num_rows + start + M)
    for first in range(0, end, N):
        keys = first + tl.arange(0, N)
        inside = keys < end
        where = key_offsets(tables, keys, inside, head // (num_heads // num_kv_heads), PAGE, num_kv_heads, D)
        visible = (keys[None, :] <= positions[:, None]) & inside[None, :]
        m, total, acc = attend_block(query, k_cache, v_cache, where, inside, visible, m, total, acc, scale_log2, D)
    tl.store(out + offsets, (acc / total[:, None]).to(out.dtype.element_ty), held)


@jit(varying=("table_stride", "max_splits"))
def decode_kernel(
    q,
    k_cache,
    v_cache,
    out,
    block_tables,
    cu_seqlens_q,
    seq_lens,
    partial_acc,
    partial_norm,
    arrived,
    table_stride,
    max_splits,
    scale_log2,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program: SPLIT keys of one key head of one sequence with a single row; all its query heads at once.

    The program that arrives last joins the parts, first to last, whatever the order of arrival, and resets the counter.
    """
    split, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(cu_seqlens_q + sequence)
    length = tl.load(seq_lens + sequence)
    if tl.load(cu_seqlens_q + sequence + 1) - row != 1:
        return
    num_splits = tl.cdiv(length, SPLIT)
    if split >= num_splits:
        return
    group: tl.constexpr = num_heads // num_kv_heads
    member = tl.arange(0, M)
    lanes = tl.arange(0, D)[None, :]
    held = (member < group)[:, None]
    heads = (row.to(tl.int64) * num_heads + kv_head * group + member)[:, None] * D + lanes
    query = tl.load(q + heads, held, 0.0)
    tables = block_tables + sequence.to(tl.int64) * table_stride
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    end = tl.minimum(length, (split + 1) * SPLIT)
    for first in range(split * SPLIT, end, N):
        keys = first + tl.arange(0, N)
        inside = keys < end
        where = key_offsets(tables, keys, inside, kv_head, PAGE, num_kv_heads, D)
        m, total, acc = attend_block(query, k_cache, v_cache, where, inside, inside[None, :], m, total, acc, scale_log2, D)
    if num_splits > 1:
        unit = sequence.to(tl.int64) * num_kv_heads + kv_head
        parts = unit * max_splits * M
        local = member[:, None] * D + lanes
        tl.store(partial_acc + (parts + split * M) * D + local, acc)
        tl.store(partial_norm + (parts + split * M) * 2 + member, m)
        tl.store(partial_norm + (parts + split * M) * 2 + M + member, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived + unit, 1, sem="acq_rel") != num_splits - 1:
            return
        tl.debug_barrier()
        m = tl.full((M,), float("-inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        acc = tl.zeros((M, D), tl.float32)
        for part in range(num_splits):
            m_part = tl.load(partial_norm + (parts + part * M) * 2 + member, cache_modifier=".cg")
            total_part = tl.load(partial_norm + (parts + part * M) * 2 + M + member, cache_modifier=".cg")
            acc_part = tl.load(partial_acc + (parts + part * M) * D + local, cache_modifier=".cg")
            m_new = tl.maximum(m, m_part)
            decay, gain = tl.exp2(m - m_new), tl.exp2(m_part - m_new)
            acc = acc * decay[:, None] + acc_part * gain[:, None]
            total = total * decay + total_part * gain
            m = m_new
        tl.store(arrived + unit, 0)
    tl.store(out + heads, (acc / total[:, None]).to(out.dtype.element_ty), held)


def arrival_counters(count: int, device: torch.device) -> torch.Tensor:
    """int32 zeros; every launch leaves them zero. One set per device: attention runs on one stream of it at a time."""
    counters = _arrival_counters.get(device)
    if counters is None or counters.numel() < count or is_recording():
        counters = torch.zeros(max(next_power_of_2(count), 4096), dtype=torch.int32, device=device)
        if not is_recording():
            _arrival_counters[device] = counters
    return counters


def paged_attention_triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    max_seqlen_q: int,
    scale: float,
) -> torch.Tensor:
    """One launch for the sequences with a single row and, if there are others, one for those.

    Which kernel a sequence takes depends on that sequence alone, so its rows do not depend on the batch.
    """
    check(k_cache.is_contiguous() and v_cache.is_contiguous() and q.dtype == k_cache.dtype, "caches: contiguous, q's dtype")
    check(block_tables.stride(1) == 1, "block_tables: contiguous rows")
    q = q.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    (_, page_size, num_kv_heads, head_dim), num_heads = k_cache.shape, q.shape[1]
    num_sequences, max_pages = block_tables.shape
    shape = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "D": head_dim, "PAGE": page_size}
    common = (q, k_cache, v_cache, out, block_tables, cu_seqlens_q, seq_lens)
    if max_seqlen_q > 1:
        m, n, num_warps, num_stages = prefill_tile(head_dim, q.dtype, has_wgmma(q))
        grid = (cdiv(max_seqlen_q, m), num_heads, num_sequences)
        launch(
            prefill_kernel, grid, *common, block_tables.stride(0), scale * LOG2_E,
            num_warps=num_warps, num_stages=num_stages, **shape, M=m, N=n,
        )  # fmt: skip
    max_splits, m = cdiv(max_pages * page_size, SPLIT), max(next_power_of_2(num_heads // num_kv_heads), 16)
    parts = num_sequences * num_kv_heads * max_splits * m
    partial_acc = torch.empty(parts * head_dim, dtype=torch.float32, device=q.device)
    partial_norm = torch.empty(parts * 2, dtype=torch.float32, device=q.device)
    launch(
        decode_kernel, (max_splits, num_kv_heads, num_sequences), *common, partial_acc, partial_norm,
        arrival_counters(num_sequences * num_kv_heads, q.device), block_tables.stride(0), max_splits, scale * LOG2_E,
        num_stages=3 if q.element_size() == 2 else 1, **shape, M=m, N=64, SPLIT=SPLIT,
    )  # fmt: skip
    return out


def prefill_tile(head_dim: int, dtype: torch.dtype, wgmma: bool) -> tuple[int, int, int, int]:
    """Rows, keys, warps and stages of the prefill kernel. Larger tiles spill registers where there is no wgmma."""
    if dtype == torch.float32:
        return 32, 32, 4, 1
    return (128, 64, 8, 2) if wgmma and head_dim <= 128 else (64, 32, 4, 2)


def paged_attention_supported(q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, scale) -> bool:
    """One dtype, head dimension a power of two from 16 on, contiguous caches."""
    head_dim = q.shape[-1]
    return (
        supported_dtype(q)
        and q.dtype == k_cache.dtype == v_cache.dtype
        and head_dim >= 16
        and head_dim & (head_dim - 1) == 0
        and k_cache.is_contiguous()
        and v_cache.is_contiguous()
    )


def fake(q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, max_seqlen_q, scale):
    return torch.empty_like(q)


paged_attention = Operator(
    "paged_attention",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_tables, Tensor cu_seqlens_q, Tensor seq_lens, "
    "int max_seqlen_q, float scale) -> Tensor",
    reference=reference,
    fake=fake,
)
paged_attention.backend("triton", devices=("cuda",), supports=paged_attention_supported)(paged_attention_triton)
