"""Native state machine and step inputs against their references: results and state, element for element."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.advance_streams import reference as advance_streams
from antiphon_kernels.decode_inputs import reference as decode_inputs
from antiphon_kernels.native.streams import native_advance_streams, native_decode_inputs

BLANK, EOS, MSG_END, MEDIA_END, DELAY = IDS = [3, 4, 1, 2, 6]
CAPACITY = 12


def state(slots: int) -> list[torch.Tensor]:
    """Random requests: text_history, audio_history, history_len, text_ended, stop, speaks, limit."""
    generator = torch.Generator().manual_seed(slots)
    histories = torch.randint(0, 9, (2, slots, CAPACITY), generator=generator, dtype=torch.int32)
    lengths = torch.randint(0, 9, (slots,), generator=generator)
    flags = torch.randint(0, 2, (2, slots), generator=generator).bool()
    return [*histories, lengths, flags[0], torch.zeros(slots, dtype=torch.int64), flags[1], torch.full((slots,), 8)]


@pytest.mark.parametrize("rows", [1, 16, 500])
def test_advance_streams(rows, isa):
    torch.manual_seed(rows)
    slots, tokens = torch.randperm(rows + 3)[:rows], torch.randint(0, 9, (2, rows))
    ours, theirs = state(rows + 3), state(rows + 3)
    got = native_advance_streams(*tokens, slots, *ours, IDS)
    for a, b in zip((*got, *ours), (*advance_streams(*tokens, slots, *theirs, IDS), *theirs), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    if rows == 500:
        assert ours[4].unique().tolist() == [0, 1, 2, 3, 4], "every reason to stop occurs"


def test_idle_rows_may_share_a_slot(isa):
    """More of them than its history holds: each writes the same place, and the slot moves on once."""
    slots, ours = torch.tensor([0] + [2] * 3 * CAPACITY), state(3)
    tokens, length = torch.full((2, len(slots)), 7), ours[2].tolist()
    native_advance_streams(*tokens, slots, *ours, IDS)
    assert ours[2].tolist() == [length[0] + 1, length[1], length[2] + 1]


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_decode_inputs(rows, isa):
    """Live, stopped and idle rows; branches that a row does not run."""
    torch.manual_seed(rows)
    slots, pages, page = rows + 2, 6, 4
    text, audio, lengths, *_ = state(slots + 1)
    inputs = [
        torch.randint(0, slots + 1, (rows,)), torch.randint(0, 9, (rows,)), torch.rand(2, rows) < 0.6,
        torch.randint(0, 99, (3, rows, pages), dtype=torch.int32), torch.tensor([200, 300, 301]), text, audio,
        lengths.clamp(min=1), torch.randint(0, 2, (slots + 1,)),
    ]  # fmt: skip
    ours, theirs = [t.clone() for t in inputs], [t.clone() for t in inputs]
    got, wanted = native_decode_inputs(*ours, page, BLANK), decode_inputs(*theirs, page, BLANK)
    for a, b in zip((*got, *ours), (*wanted, *theirs), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
