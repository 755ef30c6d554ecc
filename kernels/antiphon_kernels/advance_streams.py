"""The step state machine of both streams: forced blanks, delay, end of text, end of speech, limits.

For each row, with i = history_len of its slot, t and a the sampled tokens:

    t := blank if text_ended;  text_ended := text_ended or t = text_eos (text_eos itself is stored)
    a := blank if i < delay or the request is text-only
    store t, a at i;  history_len := i + 1
    stop := TEXT_EOS if text-only and text_ended;  MSG_END / MEDIA_END if speaking and a is one;  LIMIT if i + 1 = limit

Source: reference behaviour, section 9. Shapes: text, audio, slots int64 [R]; text_history, audio_history int32 [num_slots,
capacity]; history_len, limit int64 [num_slots]; text_ended, speaks bool [num_slots]; stop int64 [num_slots]; result
(text, audio) int64 [R], the tokens to feed back. The four special ids and the delay are ``ids``: text_blank,
text_eos, msg_end, media_end, delay. Slots of one call are distinct, but for a slot that is nobody's, whose state then
means nothing.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from .operator import Operator
from .triton_support import available, cdiv, jit, launch, tl


class Stop(IntEnum):
    """Why a request ended; RUNNING while it has not."""

    RUNNING = 0
    TEXT_EOS = 1
    MSG_END = 2
    MEDIA_END = 3
    LIMIT = 4


def reference(
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
    """All rows at once."""
    text_blank, text_eos, msg_end, media_end, delay = ids
    step, speaking = history_len[slots], speaks[slots]
    text = torch.where(text_ended[slots], text_blank, text)
    ended = text_ended[slots] | (text == text_eos)
    audio = torch.where((step < delay) | ~speaking, text_blank, audio)
    reason = torch.where(step + 1 >= limit[slots], int(Stop.LIMIT), int(Stop.RUNNING))
    reason = torch.where(speaking & (audio == media_end), int(Stop.MEDIA_END), reason)
    reason = torch.where(speaking & (audio == msg_end), int(Stop.MSG_END), reason)
    reason = torch.where(~speaking & ended, int(Stop.TEXT_EOS), reason)
    text_history[slots, step] = text.to(text_history.dtype)
    audio_history[slots, step] = audio.to(audio_history.dtype)
    history_len[slots] = step + 1
    text_ended[slots] = ended
    stop[slots] = reason
    return text, audio


@jit(varying=("num_rows",))
def advance_streams_kernel(
    text,
    audio,
    slots,
    text_history,
    audio_history,
    history_len,
    text_ended,
    stop,
    speaks,
    limit,
    text_out,
    audio_out,
    num_rows,
    history_stride,
    text_blank: tl.constexpr,
    text_eos: tl.constexpr,
    msg_end: tl.constexpr,
    media_end: tl.constexpr,
    delay: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK rows. The numbers of the stop reasons are those of :class:`Stop`."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    slot = tl.load(slots + rows, inside, 0)
    step = tl.load(history_len + slot, inside, 0)
    ended = tl.load(text_ended + slot, inside, 0) != 0
    speaking = tl.load(speaks + slot, inside, 0) != 0
    t = tl.where(ended, text_blank, tl.load(text + rows, inside, 0))
    a = tl.where((step < delay) | (speaking == 0), text_blank, tl.load(audio + rows, inside, 0))
    ended = ended | (t == text_eos)
    reason = tl.where(step + 1 >= tl.load(limit + slot, inside, 0), 4, 0)
    reason = tl.where(speaking & (a == media_end), 3, reason)
    reason = tl.where(speaking & (a == msg_end), 2, reason)
    reason = tl.where((speaking == 0) & ended, 1, reason)
    tl.store(text_history + slot * history_stride + step, t.to(tl.int32), inside)
    tl.store(audio_history + slot * history_stride + step, a.to(tl.int32), inside)
    tl.store(history_len + slot, step + 1, inside)
    tl.store(text_ended + slot, ended, inside)
    tl.store(stop + slot, reason.to(tl.int64), inside)
    tl.store(text_out + rows, t, inside)
    tl.store(audio_out + rows, a, inside)


def advance_streams_triton(
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
    """One launch; a block of 128 rows per program."""
    num_rows = slots.shape[0]
    text_out = torch.empty(num_rows, dtype=torch.int64, device=slots.device)
    audio_out = torch.empty(num_rows, dtype=torch.int64, device=slots.device)
    text_blank, text_eos, msg_end, media_end, delay = ids
    launch(
        advance_streams_kernel, (cdiv(num_rows, 128),), text.contiguous(), audio.contiguous(), slots.contiguous(),
        text_history, audio_history, history_len, text_ended, stop, speaks, limit, text_out, audio_out, num_rows,
        text_history.stride(0), text_blank=text_blank, text_eos=text_eos, msg_end=msg_end, media_end=media_end, delay=delay,
        BLOCK=128,
    )  # fmt: skip
    return text_out, audio_out


def advance_streams_supported(text, audio, slots, text_history, audio_history, *state) -> bool:
    """Per-slot arrays are contiguous."""
    return available and all(t.is_contiguous() for t in (text_history, audio_history, *state[:5]))


def fake(text, audio, slots, text_history, audio_history, history_len, text_ended, stop, speaks, limit, ids):
    return torch.empty_like(slots), torch.empty_like(slots)


advance_streams = Operator(
    "advance_streams",
    "(Tensor text, Tensor audio, Tensor slots, Tensor(a!) text_history, Tensor(b!) audio_history, "
    "Tensor(c!) history_len, Tensor(d!) text_ended, Tensor(e!) stop, Tensor speaks, Tensor limit, int[] ids) "
    "-> (Tensor, Tensor)",
    reference=reference,
    fake=fake,
)
advance_streams.backend("triton", devices=("cuda",), supports=advance_streams_supported)(advance_streams_triton)
