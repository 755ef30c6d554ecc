"""encoder_attention: attention of the two audio encoders, without a cache.

    y[i] = softmax_j( q[i] . k[j] / sqrt(D) over the keys that i may see ) v[j]

q, k, v  [N, T, heads, D]   N segments of T rows, any float dtype, any strides
lengths  [N] int64          valid rows of each segment; read only if block > 0
block    0: every row sees all T rows (Whisper: the padding takes part)
         B > 0: row i sees row j if (j <= i or i // B == j // B) and j < lengths  (GLM-4-Voice tokenizer)
y        [N, T, heads, D]   dtype of q, contiguous; products and softmax are accumulated in float32

Rows at or past ``lengths`` get results too (they see the valid keys). lengths must be at least 1.
Source: reference behaviour sections 5.5 and 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator
from .paged_attention import LOG2_E, attend_block
from .triton_support import available, cdiv, check, has_wgmma, jit, launch, supported_dtype, tl


def visible_keys(lengths: torch.Tensor, rows: int, block: int) -> torch.Tensor:
    """The block-causal mask, bool [N, rows (queries), rows (keys)]."""
    index = torch.arange(rows, device=lengths.device)
    query, key = index[:, None], index[None, :]
    allowed = (key <= query) | (key // block == query // block)
    return allowed & (index < lengths[:, None])[:, None, :]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, block: int) -> torch.Tensor:
    """Scaled dot-product attention per head, [N, T, heads, D]."""
    mask = visible_keys(lengths, q.shape[1], block)[:, None] if block > 0 else None
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return y.transpose(1, 2).contiguous()


@jit(varying=("num_rows", "block"))
def encoder_attention_kernel(
    q,
    k,
    v,
    out,
    lengths,
    num_rows,
    block,
    q_segment_stride,
    q_row_stride,
    q_head_stride,
    k_segment_stride,
    k_row_stride,
    k_head_stride,
    scale_log2,
    heads: tl.constexpr,
    D: tl.constexpr,
    BLOCKED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One program: M rows of one head of one segment against the keys that any of them may see, in steps of N."""
    start, head, segment = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = start + tl.arange(0, M)
    lanes = tl.arange(0, D)[None, :]
    held = (rows < num_rows)[:, None]
    source = q + segment * q_segment_stride + head * q_head_stride
    query = tl.load(source + rows.to(tl.int64)[:, None] * q_row_stride + lanes, held, 0.0)
    end = num_rows
    if BLOCKED:
        last = tl.minimum(start + M, num_rows) - 1
        end = tl.minimum(tl.load(lengths + segment).to(tl.int32), (last // block + 1) * block)
    m = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, D), tl.float32)
    base = segment * k_segment_stride + head * k_head_stride
    for first in range(0, end, N):
        keys = first + tl.arange(0, N)
        inside = keys < end
        visible = inside[None, :]
        if BLOCKED:
            earlier = (keys[None, :] <= rows[:, None]) | ((keys // block)[None, :] == (rows // block)[:, None])
            visible = visible & earlier
        where = base + keys.to(tl.int64) * k_row_stride
        m, total, acc = attend_block(query, k, v, where, inside, visible, m, total, acc, scale_log2, D)
    target = ((segment * num_rows + rows) * heads + head)[:, None] * D + lanes
    tl.store(out + target, (acc / total[:, None]).to(out.dtype.element_ty), held)


def encoder_attention_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, block: int
) -> torch.Tensor:
    """Launch over [row tiles, heads, segments] programs; k and v are copied if their strides differ."""
    check(q.dtype == k.dtype == v.dtype, "q, k, v: one dtype")
    if k.stride() != v.stride() or k.stride(-1) != 1:
        k, v = k.contiguous(), v.contiguous()
    q = q if q.stride(-1) == 1 else q.contiguous()
    segments, num_rows, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    m, n, num_warps, num_stages = row_tile(q.dtype, has_wgmma(q))
    launch(
        encoder_attention_kernel, (cdiv(num_rows, m), heads, segments), q, k, v, out, lengths, num_rows, max(block, 1),
        *q.stride()[:3], *k.stride()[:3], head_dim**-0.5 * LOG2_E, num_warps=num_warps, num_stages=num_stages, heads=heads,
        D=head_dim, BLOCKED=block > 0, M=m, N=n,
    )  # fmt: skip
    return out


def row_tile(dtype: torch.dtype, wgmma: bool) -> tuple[int, int, int, int]:
    """Rows, keys, warps and stages; small tiles for float32, which has no tensor cores."""
    if dtype == torch.float32:
        return 32, 32, 4, 1
    return (128, 64, 8, 2) if wgmma else (64, 64, 4, 2)


def encoder_attention_supported(q, k, v, lengths, block) -> bool:
    """Head dimension a power of two from 16 to 128."""
    head_dim = q.shape[-1]
    return available and supported_dtype(q) and q.dtype == k.dtype == v.dtype and head_dim in (16, 32, 64, 128)


def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, block: int) -> torch.Tensor:
    return q.new_empty(q.shape)


encoder_attention = Operator(
    "encoder_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor lengths, int block) -> Tensor",
    reference=reference,
    fake=_fake,
)
encoder_attention.backend("triton", devices=("cuda",), supports=encoder_attention_supported)(encoder_attention_triton)
