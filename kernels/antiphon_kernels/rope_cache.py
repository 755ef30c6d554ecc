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


def fake(qkv, positions, cos, sin, slots, k_cache, v_cache, num_heads):
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[-1])


rope_cache = Operator(
    "rope_cache",
    "(Tensor qkv, Tensor positions, Tensor cos, Tensor sin, Tensor slots, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "int num_heads) -> Tensor",
    reference=reference,
    fake=fake,
)
