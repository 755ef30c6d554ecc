"""Half-split rotary embedding on q and k, fused with the write of k and v into the paged cache.

    (a, b) = (x[..., :D/2], x[..., D/2:]);  rotated = (a cos - b sin, b cos + a sin)   at the row's position

Source: reference behaviour, section 8. Shapes: qkv [T, (Hq + 2 Hkv) D], packed q | k | v; positions int64 [T]; cos, sin
float32 [max_positions, D/2]; slots int64 [T], slot = page * page_size + offset; k_cache, v_cache [pages, page_size, Hkv, D]
of one layer, written in place at the slots and nowhere else; result: rotated q [T, Hq, D]. Rotation in float32, one
rounding at the store.
"""

from __future__ import annotations

import torch

from .operator import Operator
from .triton_support import available, check, jit, launch, row_contiguous, supported_dtype, tl


def rotate_half_split(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, heads, D] by per-row angles cos, sin [T, D/2]; float32 inside, x's dtype outside."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def reference(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Split, rotate, scatter."""
    num_kv_heads, head_dim = k_cache.shape[-2:]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    rotated = rotate_half_split(heads[:, : num_heads + num_kv_heads], cos[positions], sin[positions])
    k_cache.view(-1, num_kv_heads, head_dim)[slots] = rotated[:, num_heads:].to(k_cache.dtype)
    v_cache.view(-1, num_kv_heads, head_dim)[slots] = heads[:, num_heads + num_kv_heads :].to(v_cache.dtype)
    return rotated[:, :num_heads].contiguous()


@jit
def rope_cache_kernel(
    qkv,
    positions,
    cos,
    sin,
    slots,
    k_cache,
    v_cache,
    out,
    qkv_stride,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """One program: HEADS heads of one row, all of them q, k or v heads (HEADS divides both head counts)."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    lanes = tl.arange(0, HALF)[None, :]
    local = tl.arange(0, HEADS)[:, None] * (2 * HALF) + lanes
    source = qkv + row * qkv_stride + first * (2 * HALF) + local
    a = tl.load(source)
    b = tl.load(source + HALF)
    slot = tl.load(slots + row)
    if first < num_heads + num_kv_heads:
        position = tl.load(positions + row)
        c = tl.load(cos + position * HALF + lanes)
        s = tl.load(sin + position * HALF + lanes)
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        a, b = (wide_a * c - wide_b * s).to(a.dtype), (wide_b * c + wide_a * s).to(b.dtype)
        if first < num_heads:
            target = out + (row * num_heads + first) * (2 * HALF) + local
            tl.store(target, a)
            tl.store(target + HALF, b)
        else:
            target = k_cache + (slot * num_kv_heads + first - num_heads) * (2 * HALF) + local
            tl.store(target, a.to(k_cache.dtype.element_ty))
            tl.store(target + HALF, b.to(k_cache.dtype.element_ty))
    else:
        target = v_cache + (slot * num_kv_heads + first - num_heads - num_kv_heads) * (2 * HALF) + local
        tl.store(target, a.to(v_cache.dtype.element_ty))
        tl.store(target + HALF, b.to(v_cache.dtype.element_ty))


def rope_cache_triton(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    num_heads: int,
) -> torch.Tensor:
    """Launch over [T, heads / HEADS] programs, HEADS the largest power of two that divides both head counts."""
    check(all(t.is_contiguous() for t in (cos, sin, k_cache, v_cache)), "tables and caches: contiguous")
    qkv = row_contiguous(qkv)
    num_rows, (num_kv_heads, head_dim) = qkv.shape[0], k_cache.shape[-2:]
    common = num_heads | num_kv_heads
    heads = common & -common
    out = torch.empty(num_rows, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    launch(
        rope_cache_kernel, (num_rows, (num_heads + 2 * num_kv_heads) // heads), qkv, positions.contiguous(), cos, sin,
        slots.contiguous(), k_cache, v_cache, out, qkv.stride(0), num_warps=1, num_heads=num_heads,
        num_kv_heads=num_kv_heads, HALF=head_dim // 2, HEADS=heads,
    )  # fmt: skip
    return out


def rope_cache_supported(qkv, positions, cos, sin, slots, k_cache, v_cache, num_heads) -> bool:
    """Head dimension a power of two, contiguous caches."""
    half = k_cache.shape[-1] // 2
    return available and supported_dtype(qkv, k_cache) and half & (half - 1) == 0 and k_cache.is_contiguous()


def fake(qkv, positions, cos, sin, slots, k_cache, v_cache, num_heads):
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[-1])


rope_cache = Operator(
    "rope_cache",
    "(Tensor qkv, Tensor positions, Tensor cos, Tensor sin, Tensor slots, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "int num_heads) -> Tensor",
    reference=reference,
    fake=fake,
)
rope_cache.backend("triton", devices=("cuda",), supports=rope_cache_supported)(rope_cache_triton)
