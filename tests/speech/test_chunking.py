"""The cutting does not depend on how tokens arrive, unless it was asked to be eager."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.speech import SpeechOptions
from antiphon.speech.chunking import ChunkQueue

SMALL = SpeechOptions(first_chunk=4, chunk=7, look_ahead=2)


def cut(queue: ChunkQueue, tokens, arrivals) -> list[tuple[list[int], bool]]:
    """Push ``tokens`` in groups of the sizes ``arrivals``, popping whatever is ready, then finish."""
    chunks, position = [], 0
    for size in [*arrivals, len(tokens)]:
        queue.push(tokens[position : position + size])
        position += size
        while queue.ready:
            chunks.append(queue.pop())
    queue.finish()
    while queue.ready:
        chunks.append(queue.pop())
    assert queue.done
    return chunks


@given(num_tokens=st.integers(0, 60), arrivals=st.lists(st.integers(0, 13), max_size=15))
def test_cutting_is_the_offline_one(num_tokens, arrivals):
    tokens = list(range(num_tokens))
    offline = cut(ChunkQueue(SMALL), tokens, [])
    assert cut(ChunkQueue(SMALL), tokens, arrivals) == offline
    assert [token for chunk, _ in offline for token in chunk] == tokens
    assert [final for _, final in offline] == [False] * (len(offline) - 1) + [True] * bool(tokens)
    sizes = [len(chunk) for chunk, _ in offline]
    assert sizes[:-1] == [4, *[7] * 20][: max(0, len(sizes) - 1)] and all(sizes)


@given(num_tokens=st.integers(0, 60), arrivals=st.lists(st.integers(0, 13), max_size=15))
def test_eager_cutting_loses_nothing_and_ends_once(num_tokens, arrivals):
    eager = SpeechOptions(first_chunk=4, chunk=7, look_ahead=2, eager=True)
    chunks = cut(ChunkQueue(eager), list(range(num_tokens)), arrivals)
    assert [token for chunk, _ in chunks for token in chunk] == list(range(num_tokens))
    assert [final for _, final in chunks] == [False] * (len(chunks) - 1) + [True] * bool(num_tokens)


def test_a_full_chunk_waits_for_the_token_behind_it():
    queue = ChunkQueue(SMALL)
    assert not queue.push([1, 2, 3, 4]) and queue.tokens_needed == 1
    assert queue.push([5]) and queue.tokens_needed == 0
    assert queue.pop() == ([1, 2, 3, 4], False) and queue.tokens_needed == 7


def test_an_eager_chunk_does_not_wait_and_may_leave_an_empty_last_one():
    queue = ChunkQueue(SpeechOptions(first_chunk=4, chunk=7, look_ahead=2, eager=True))
    assert queue.push([1, 2, 3, 4]) and queue.pop() == ([1, 2, 3, 4], False)
    assert queue.finish() and queue.pop() == ([], True) and queue.done


def test_our_own_mistakes_are_errors():
    queue = ChunkQueue(SMALL)
    with pytest.raises(ValueError, match="5 tokens are missing"):
        queue.pop()
    queue.finish()
    with pytest.raises(ValueError, match="finished"):
        queue.push([1])
