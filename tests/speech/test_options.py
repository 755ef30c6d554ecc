"""SpeechOptions: what it refuses, and the chunk sizes it implies."""

from __future__ import annotations

import pytest

from antiphon.errors import InputError
from antiphon.speech import SpeechOptions


def test_defaults_are_the_reference():
    options = SpeechOptions()
    assert (options.first_chunk, options.chunk, options.look_ahead, options.ode_steps) == (30, 30, 12, 29)
    assert options.overlap == "reference" and options.look_ahead_frames == 48 and options.max_frames == 168
    assert [options.chunk_size(i) for i in range(4)] == [30] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first_chunk": 12}, "first_chunk must be an integer from 13 .*look_ahead is 12.*got 12"),
        ({"chunk": 0}, "chunk must be"),
        ({"chunk": 2.5}, "chunk must be an integer"),
        ({"look_ahead": -1}, "look_ahead must be"),
        ({"ode_steps": 0}, "ode_steps must be"),
        ({"ode_steps": True}, "ode_steps must be an integer"),
        ({"overlap": "none"}, "overlap must be one of reference, exact, lookahead, got 'none'"),
        ({"vocoder_context": -1}, "vocoder_context must be"),
        ({"cross_fade": 1921}, "cross_fade must be"),
        ({"chunk_growth": 1.0}, "chunk_growth must be"),
    ],
)
def test_impossible_values_are_refused_by_name(wrong, message):
    with pytest.raises(InputError, match=message):
        SpeechOptions(**wrong)


def test_what_is_heard_of_a_chunk_grows_up_to_the_full_size():
    """8 tokens, 4 of them heard; then 1.5 times as many each."""
    options = SpeechOptions(first_chunk=8, chunk=30, look_ahead=4, chunk_growth=1.5)
    assert [options.chunk_size(i) for i in range(7)] == [8, 6, 9, 13, 19, 28, 30]


def test_slow_growth_still_grows():
    options = SpeechOptions(first_chunk=3, chunk=6, look_ahead=0, chunk_growth=1.01)
    assert [options.chunk_size(i) for i in range(5)] == [3, 4, 5, 6, 6]


def test_a_first_chunk_above_the_full_size_stays_the_only_large_one():
    options = SpeechOptions(first_chunk=40, chunk=20, chunk_growth=2.0)
    assert [options.chunk_size(i) for i in range(3)] == [40, 20, 20]
