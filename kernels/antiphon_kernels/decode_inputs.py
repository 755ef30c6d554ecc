"""What a decode step reads, from the requests' state on the device alone, so that steps can follow each other without the host.

Row r continues the request in slot s = slots[r], with i = history_len[s] pairs drawn so far:

    ids       = the last pair, text_history[s, i - 1] and audio_history[s, i - 1]
    position  = base[r] + i                                 base = prompt length - 1
    cache     = tables[g, r, position / page] * page + position % page        for the groups g = trunk, text, audio
    seq_len   = position + 1

A row that is empty (slot = the last one), or whose request has stopped, is idle: it takes the last slot, blank ids, position 0,
the first place of the group's last page, and a context of one. A branch that a row does not run (runs[0] text, runs[1] audio)
is idle in that group only. The last slot and the last pages belong to nobody. history_len and stop of the last slot are reset.

Shapes: slots, base int64 [R]; runs bool [2, R]; tables int32 [3, R, W]; histories int32 [slots, capacity]; history_len, stop
int64 [slots]; spare int64 [3], the last page of each group; result: slots int64 [R], text ids, audio ids int64 [R], positions
int64 [2, R] (twice the same, for one branch or two), cache slots int64 [3, R], seq_lens int32 [3, R].
"""

from __future__ import annotations

import torch

from .operator import Operator
from .triton_support import available, cdiv, jit, launch, tl

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def reference(
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
    """The formulas above."""
    last = history_len.shape[0] - 1
    live = (slots != last) & (stop[slots] == 0)
    own = torch.where(live, slots, last)
    length = torch.where(live, history_len[own], 1)
    text = torch.where(live, text_history[own, length - 1].long(), blank)
    audio = torch.where(live, audio_history[own, length - 1].long(), blank)
    position = torch.where(live, base + length, 0)
    used = torch.cat((live[None], live & runs))
    pages = tables.gather(2, (position // page_size).expand(3, -1)[..., None])[..., 0].long()
    cache = torch.where(used, pages * page_size + position % page_size, spare[:, None] * page_size)
    seq_lens = torch.where(used, position + 1, 1).to(torch.int32)
    history_len[last:] = 0
    stop[last:] = 0
    return own, text, audio, position.repeat(2, 1), cache, seq_lens


@jit(varying=("num_rows", "width", "last"))
def decode_inputs_kernel(
    slots, base, runs, tables, spare, text_history, audio_history, history_len, stop, own_out, text_out, audio_out,
    positions, cache, seq_lens, num_rows, width, last, history_stride, PAGE: tl.constexpr, BLANK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < num_rows
    slot = tl.load(slots + rows, inside, 0)
    live = inside & (slot != last) & (tl.load(stop + slot, inside, 1) == 0)
    length = tl.load(history_len + slot, live, 1)
    place = slot * history_stride + length - 1
    text = tl.load(text_history + place, live, BLANK)
    audio = tl.load(audio_history + place, live, BLANK)
    position = tl.where(live, tl.load(base + rows, inside, 0) + length, 0)
    tl.store(own_out + rows, tl.where(live, slot, last), inside)
    tl.store(text_out + rows, text.to(tl.int64), inside)
    tl.store(audio_out + rows, audio.to(tl.int64), inside)
    tl.store(positions + rows, position, inside)
    tl.store(positions + num_rows + rows, position, inside)
    for group in tl.static_range(3):
        used = live
        if group > 0:
            used = live & (tl.load(runs + (group - 1) * num_rows + rows, inside, 0) != 0)
        page = tl.load(tables + (group * num_rows + rows).to(tl.int64) * width + position // PAGE, used, 0).to(tl.int64)
        idle = tl.load(spare + group) * PAGE
        tl.store(cache + group * num_rows + rows, tl.where(used, page * PAGE + position % PAGE, idle), inside)
        tl.store(seq_lens + group * num_rows + rows, tl.where(used, position + 1, 1).to(tl.int32), inside)
    if tl.program_id(0) == 0:
        tl.store(history_len + last, tl.full((), 0, tl.int64))
        tl.store(stop + last, tl.full((), 0, tl.int64))


def decode_inputs_triton(
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
    """One launch; a block of 128 rows per program."""
    rows, device = slots.shape[0], slots.device
    own, text, audio = (torch.empty(rows, dtype=torch.int64, device=device) for _ in range(3))
    positions = torch.empty(2, rows, dtype=torch.int64, device=device)
    cache = torch.empty(3, rows, dtype=torch.int64, device=device)
    seq_lens = torch.empty(3, rows, dtype=torch.int32, device=device)
    launch(
        decode_inputs_kernel, (cdiv(rows, 128),), slots, base, runs, tables, spare, text_history, audio_history,
        history_len, stop, own, text, audio, positions, cache, seq_lens, rows, tables.shape[2],
        history_len.shape[0] - 1, text_history.stride(0), PAGE=page_size, BLANK=blank, BLOCK=128,
    )  # fmt: skip
    return own, text, audio, positions, cache, seq_lens


def decode_inputs_supported(*args) -> bool:
    """All tensors contiguous."""
    return available and all(t.is_contiguous() for t in args[:9])


def fake(slots, base, runs, tables, spare, text_history, audio_history, history_len, stop, page_size, blank):
    rows = slots.shape[0]
    own, text, audio = (torch.empty_like(slots) for _ in range(3))
    return own, text, audio, slots.new_empty(2, rows), slots.new_empty(3, rows), tables.new_empty(3, rows)


decode_inputs = Operator(
    "decode_inputs",
    "(Tensor slots, Tensor base, Tensor runs, Tensor tables, Tensor spare, Tensor text_history, Tensor audio_history, "
    "Tensor(a!) history_len, Tensor(b!) stop, int page_size, int blank) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference,
    fake=fake,
)
decode_inputs.backend("triton", devices=("cuda",), supports=decode_inputs_supported)(decode_inputs_triton)
