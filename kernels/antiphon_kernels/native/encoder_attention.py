"""Native attention of the audio encoders."""

from __future__ import annotations

import torch

from .. import _native
from ..encoder_attention import encoder_attention
from .arguments import DTYPES, fits, pointer


def supports(q, k, v, lengths, block) -> bool:
    return fits(q, k, v) and (block == 0 or (lengths.dtype == torch.int64 and lengths.is_contiguous()))


@encoder_attention.backend("native", devices=("cpu",), supports=supports)
def native_encoder_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor, block: int
) -> torch.Tensor:
    """q, k, v [N, T, heads, D], elements of a head neighbours or copied → [N, T, heads, D]."""
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    out = q.new_empty(q.shape)
    _native.encoder_attention(
        DTYPES[q.dtype],
        *(t.data_ptr() for t in (q, k, v)),
        [stride for t in (q, k, v) for stride in t.stride()[:3]],
        pointer(lengths),
        out.data_ptr(),
        *q.shape,
        block,
        q.shape[-1] ** -0.5,
    )
    return out
