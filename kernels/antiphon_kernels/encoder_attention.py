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


def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, block: int) -> torch.Tensor:
    return q.new_empty(q.shape)


encoder_attention = Operator(
    "encoder_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor lengths, int block) -> Tensor",
    reference=reference,
    fake=_fake,
)
