"""Conversations as bytes: the same again, and damage noticed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.conversation import Conversation
from antiphon.conversation_codec import ConversationFormatError, decode_conversation, encode_conversation
from antiphon.execution.audio_encoder import EncodedAudio


def conversation(lengths=(3, 0, 5), dtype=torch.float32, width=8, extra=7):
    generator = torch.Generator().manual_seed(sum(lengths) + extra)
    total = sum(lengths) + extra
    audios = tuple(
        EncodedAudio(
            torch.randint(0, 16384, (n,), generator=generator),
            torch.randn(n, width, generator=generator).to(dtype) if width else None,
            bytes([index]) * 16,
            n * 1280 + 1,
        )
        for index, n in enumerate(lengths)
    )
    ids = torch.randint(0, 168_448, (2, total), generator=generator)
    rows = torch.cat((torch.arange(sum(lengths)), torch.full((extra,), -1)))
    return Conversation(ids[0], ids[1], rows, audios)


def check_equal(one, other):
    for name in ("audio_ids", "text_ids", "feature_rows"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert len(one.audios) == len(other.audios)
    for a, b in zip(one.audios, other.audios):
        assert torch.equal(a.speech_codes, b.speech_codes)
        assert (a.content_hash, a.num_samples) == (b.content_hash, b.num_samples)
        assert (a.features is None) == (b.features is None)
        if a.features is not None:
            assert a.features.dtype == b.features.dtype and torch.equal(a.features, b.features)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([0, 1, 6]),
    st.integers(0, 20),
)
def test_what_comes_out_is_what_went_in(lengths, dtype, width, extra):
    one = conversation(lengths, dtype, width, extra)
    check_equal(decode_conversation(encode_conversation(one)), one)


def test_the_streams_are_compact():
    blank = torch.full((1000,), 151666)
    one = Conversation(blank, blank, torch.full((1000,), -1), ())
    assert len(encode_conversation(one)) < 300


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_noticed(data):
    stored = bytearray(encode_conversation(conversation()))
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ConversationFormatError):
        decode_conversation(bytes(stored))
    with pytest.raises(ConversationFormatError):
        decode_conversation(bytes(stored[:place]))


def test_another_version_is_refused_by_number():
    stored = bytearray(encode_conversation(conversation()))
    stored[4] = 9
    with pytest.raises(ConversationFormatError, match="version 9"):
        decode_conversation(bytes(stored))
