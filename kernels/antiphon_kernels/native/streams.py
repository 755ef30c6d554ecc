"""Native state machine of the two streams, and what the next step reads from it."""

from __future__ import annotations

import torch

from .. import _native
from ..advance_streams import advance_streams
from ..decode_inputs import Inputs, decode_inputs
from .arguments import are


def _advances(
    text, audio, slots, text_history, audio_history, history_len, text_ended, stop, speaks, limit, ids
) -> bool:
    return (
        are(torch.int32, text_history, audio_history)
        and are(torch.int64, history_len, stop, limit)
        and are(torch.bool, text_ended, speaks)
    )


@advance_streams.backend("native", devices=("cpu",), supports=_advances)
def native_advance_streams(
    text: torch.Tensor,
    audio: torch.Tensor,
    slots: torch.Tensor,
    text_history: torch.Tensor,
    audio_history: torch.Tensor,
    history_len: torch.Tensor,
    text_ended: torch.Tensor,
    stop: torch.Tensor,
    speaks: torch.Tensor,
    limit: torch.Tensor,
    ids: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled tokens int64 [R] → those to feed back; the state of their slots moves one step on."""
    rows = [t.contiguous() for t in (text, audio, slots)]
    out = torch.empty_like(rows[0]), torch.empty_like(rows[0])
    state = (text_history, audio_history, history_len, text_ended, stop, speaks, limit)
    addresses = [t.data_ptr() for t in (*rows, *out)]
    _native.advance_streams([t.data_ptr() for t in state], text_history.shape[1], ids, *addresses, rows[2].shape[0])
    return out


def _reads(slots, base, runs, tables, spare, text_history, audio_history, history_len, stop, page_size, blank) -> bool:
    return (
        are(torch.int64, slots, base, spare, history_len, stop)
        and are(torch.bool, runs)
        and are(torch.int32, tables, text_history, audio_history)
    )


@decode_inputs.backend("native", devices=("cpu",), supports=_reads)
def native_decode_inputs(
    slots: torch.Tensor,
    base: torch.Tensor,
    runs: torch.Tensor,
    tables: torch.Tensor,
    spare: torch.Tensor,
    text_history: torch.Tensor,
    audio_history: torch.Tensor,
    history_len: torch.Tensor,
    stop: torch.Tensor,
    page_size: int,
    blank: int,
) -> Inputs:
    """Slots int64 [R] → slots, text and audio ids [R], positions [2, R], cache slots [3, R], seq_lens int32 [3, R]."""
    rows, last = slots.shape[0], history_len.shape[0] - 1
    out = (
        *(torch.empty_like(slots) for _ in range(3)),
        *(slots.new_empty(n, rows) for n in (2, 3)),
        tables.new_empty(3, rows),
    )
    inputs = (slots, base, runs, tables, spare, text_history, audio_history, history_len, stop)
    sizes = [text_history.shape[1], last, rows, tables.shape[2], page_size, blank]
    _native.decode_inputs([t.data_ptr() for t in inputs], sizes, [t.data_ptr() for t in out])
    history_len[last] = 0
    stop[last] = 0
    return out
