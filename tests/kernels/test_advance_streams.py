"""The step state machine: delay, blanks, end of text, end of speech, limits."""

from __future__ import annotations

import torch

from antiphon_kernels import Stop, advance_streams

BLANK, EOS, MSG_END, MEDIA_END, DELAY = 23, 24, 2, 20, 2
IDS = [BLANK, EOS, MSG_END, MEDIA_END, DELAY]


class Machine:
    """State arrays of ``n`` slots."""

    def __init__(self, n: int, speaks: list[bool], limit: int = 50):
        self.text, self.audio = torch.full((2, n, 64), -1, dtype=torch.int32)
        self.length, self.stop = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        self.ended, self.speaks = torch.zeros(n, dtype=torch.bool), torch.tensor(speaks)
        self.limit = torch.full((n,), limit)

    def step(self, text, audio, slots):
        out = advance_streams(
            torch.tensor(text), torch.tensor(audio), torch.tensor(slots), self.text, self.audio, self.length, self.ended,
            self.stop, self.speaks, self.limit, IDS,
        )  # fmt: skip
        return [o.tolist() for o in out]


def test_text_only_request_ends_with_its_text_and_never_speaks():
    m = Machine(1, [False])
    assert m.step([5], [MSG_END], [0]) == [[5], [BLANK]]
    assert m.stop[0] == Stop.RUNNING
    assert m.step([EOS], [7], [0]) == [[EOS], [BLANK]]
    assert m.stop[0] == Stop.TEXT_EOS
    assert m.text[0, :3].tolist() == [5, EOS, -1] and m.audio[0, :3].tolist() == [BLANK, BLANK, -1]


def test_speech_is_delayed_and_goes_on_after_the_text():
    m = Machine(1, [True])
    m.step([5], [MEDIA_END], [0])
    m.step([EOS], [MSG_END], [0])
    assert m.stop[0] == Stop.RUNNING and m.audio[0, :2].tolist() == [BLANK, BLANK]
    assert m.step([6], [40], [0]) == [[BLANK], [40]]
    m.step([6], [MEDIA_END], [0])
    assert m.stop[0] == Stop.MEDIA_END
    assert m.audio[0, :4].tolist() == [BLANK, BLANK, 40, MEDIA_END] and m.length[0] == 4


def test_msg_end_stops_speech_and_the_limit_stops_both_kinds():
    m = Machine(2, [True, False], limit=3)
    for _ in range(2):
        m.step([5, 5], [40, 40], [0, 1])
    m.step([5, 5], [MSG_END, 40], [0, 1])
    assert m.stop.tolist() == [Stop.MSG_END, Stop.LIMIT]


def test_an_end_in_the_last_step_is_an_end_and_not_a_limit():
    m = Machine(1, [False], limit=1)
    m.step([EOS], [0], [0])
    assert m.stop[0] == Stop.TEXT_EOS


def test_slots_in_any_order_touch_nothing_else():
    m = Machine(3, [True, False, True])
    m.step([1, 2], [3, 4], [2, 0])
    assert m.length.tolist() == [1, 0, 1]
    assert m.text[:, 0].tolist() == [2, -1, 1]
