"""Native sampling: one pass over the logits, then the few that can be drawn; the same tokens as the reference."""

from __future__ import annotations

import torch

from .. import _native
from ..sample_tokens import sample_tokens
from .arguments import DTYPES, are, fits


def supports(logits, history, history_len, slots, temperature, top_k, penalty, window, seeds, stream) -> bool:
    """Float32 or bfloat16 logits; the state as ``DecodeState`` has it: the four parameters strided, all alike."""
    parameters = (temperature, penalty, top_k, window)
    return (
        fits(logits)
        and are(torch.int64, history_len, seeds)
        and history.dtype == torch.int32
        and history.stride(1) == 1
        and [p.dtype for p in parameters] == [torch.float32, torch.float32, torch.int64, torch.int64]
        and len({p.stride(0) for p in parameters}) == 1
    )


@sample_tokens.backend("native", devices=("cpu",), supports=supports)
def native_sample_tokens(
    logits: torch.Tensor,
    history: torch.Tensor,
    history_len: torch.Tensor,
    slots: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    penalty: torch.Tensor,
    window: torch.Tensor,
    seeds: torch.Tensor,
    stream: int,
) -> torch.Tensor:
    """Logits [R, V], rows at any distance → tokens int64 [R]."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    slots = slots.contiguous()
    out = torch.empty_like(slots)
    num_rows, vocabulary = logits.shape
    _native.sample_tokens(
        DTYPES[logits.dtype],
        logits.data_ptr(),
        logits.stride(0),
        vocabulary,
        num_rows,
        slots.data_ptr(),
        history.data_ptr(),
        history.stride(0),
        history_len.data_ptr(),
        [p.data_ptr() for p in (temperature, penalty, top_k, window)],
        temperature.stride(0),
        seeds.data_ptr(),
        stream,
        out.data_ptr(),
    )
    return out
