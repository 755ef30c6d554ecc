"""Incremental decoding: any ids in any portions give the text of all ids, and no character is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.text import TextStream, TextTokenizer

TOKENIZER = TextTokenizer.from_file(Path(__file__).resolve().parents[1] / "data" / "tiny" / "tiktoken.model")
ANY_ID = st.integers(0, TOKENIZER.num_base + 420)
SINGLE_BYTE = st.sampled_from([i for i in range(TOKENIZER.num_base) if len(TOKENIZER.decode_bytes([i])) == 1])
PORTIONS = st.lists(st.lists(ANY_ID | SINGLE_BYTE, max_size=6), max_size=12)


@settings(max_examples=300, deadline=None)
@given(PORTIONS)
def test_deltas_join_to_the_whole_text(portions):
    stream = TextStream(TOKENIZER)
    text = "".join(stream.push(ids) for ids in portions) + stream.flush()
    assert text == TOKENIZER.decode([i for ids in portions for i in ids])


@settings(max_examples=300, deadline=None)
@given(PORTIONS)
def test_one_by_one_is_the_same_as_in_portions(portions):
    one, many = TextStream(TOKENIZER), TextStream(TOKENIZER)
    for ids in portions:
        assert "".join(one.push_one(i) for i in ids) == many.push(ids)
    assert one.flush() == many.flush()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_valid_text_never_shows_a_cut_character(text):
    stream = TextStream(TOKENIZER)
    deltas = [stream.push([i]) for i in TOKENIZER.encode(text)]
    assert "".join(deltas) == text
    assert stream.flush() == ""


def test_a_character_waits_for_its_last_byte():
    ids = TOKENIZER.encode("🎧")
    assert len(ids) > 1, "the toy vocabulary splits an emoji"
    stream = TextStream(TOKENIZER)
    assert [stream.push([i]) for i in ids] == [""] * (len(ids) - 1) + ["🎧"]


def test_flush_ends_an_unfinished_character_and_starts_anew():
    stream = TextStream(TOKENIZER)
    assert stream.push(TOKENIZER.encode("🎧")[:1]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(TOKENIZER.encode("ok")) == "ok" and stream.flush() == ""


def test_a_special_id_ends_an_unfinished_character():
    stream = TextStream(TOKENIZER)
    ids = [TOKENIZER.encode("🎧")[0], TOKENIZER.special_tokens["[EOS]"]]
    assert stream.push(ids) == "\ufffd[EOS]"


@pytest.mark.parametrize("method", ["flush", "reset"])
def test_empty_stream(method):
    stream = TextStream(TOKENIZER)
    assert not getattr(stream, method)() and stream.push([]) == ""
