"""The step state machine of both streams: forced blanks, delay, end of text, end of speech, limits.

For each row, with i = history_len of its slot, t and a the sampled tokens:

    t := blank if text_ended;  text_ended := text_ended or t = text_eos (text_eos itself is stored)
    a := blank if i < delay or the request is text-only
    store t, a at i;  history_len := i + 1
    stop := TEXT_EOS if text-only and text_ended;  MSG_END / MEDIA_END if speaking and a is one;  LIMIT if i + 1 = limit

Source: reference behaviour, section 9. Shapes: text, audio, slots int64 [R]; text_history, audio_history int32 [num_slots,
capacity]; history_len, limit int64 [num_slots]; text_ended, speaks bool [num_slots]; stop int64 [num_slots]; result
(text, audio) int64 [R], the tokens to feed back. The four special ids and the delay are ``ids``: text_blank,
text_eos, msg_end, media_end, delay. Slots of one call are distinct.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from .operator import Operator


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
