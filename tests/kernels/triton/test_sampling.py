"""Triton sampling and step state machine against the references: the same token, not a similar one."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.advance_streams import advance_streams_triton
from antiphon_kernels.advance_streams import reference as advance_streams
from antiphon_kernels.philox import philox, philox_word_triton
from antiphon_kernels.sample_tokens import CHUNK, FEW, sample_tokens_triton
from antiphon_kernels.sample_tokens import reference as sample_tokens
from antiphon_kernels.triton_support import jit, launch, tl

VOCABULARY = 2 * CHUNK + 77
"""Two full chunks and a short one."""


def arguments(logits, *, temperature=1.0, top_k=5, penalty=1.0, window=4, length=12, stream=0):
    """Slots in another order than rows; parameters strided like the two streams' columns of the decode state."""
    rows, vocabulary = logits.shape
    slots = torch.arange(rows).flip(0)
    history = torch.randint(0, vocabulary, (rows, 40), dtype=torch.int32)
    history[:, :length] = logits.float().topk(length).indices.int().flip(0)  # the window holds the best ids
    columns = [torch.zeros(rows, 2, dtype=d) for d in (torch.float32, torch.int64, torch.float32, torch.int64)]
    for column, value in zip(columns, (temperature, top_k, penalty, window)):
        column[:, stream] = torch.as_tensor(value, dtype=column.dtype)
    views = [c[:, stream] for c in columns]
    seeds = torch.randint(-(2**62), 2**62, (rows,))
    return logits, history, torch.full((rows,), length), slots, *views, seeds, stream


def same_tokens(poisoned, args):
    with poisoned():
        got = sample_tokens_triton(*args)
    assert torch.equal(got, sample_tokens(*args))
    return got


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(d, marks=pytest.mark.wide) for d in (torch.float32, torch.float16))], ids=str
)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({"temperature": 0.0, "penalty": 1.3}, id="greedy-penalty"),
        pytest.param({"top_k": 1}, id="top-1"),
        pytest.param({"top_k": 10, "penalty": 1.2, "window": 9}, id="top-10-penalty"),
        pytest.param({"top_k": FEW, "stream": 1}, id="most-of-the-short-way"),
        pytest.param({"top_k": 0, "temperature": 0.7, "stream": 1}, id="unlimited"),
        pytest.param({"top_k": VOCABULARY + 5}, id="top-k-above-vocabulary"),
        pytest.param({"top_k": 5, "penalty": 2.0, "window": 12}, id="history-not-longer-than-window"),
    ],
)
def test_draws(poisoned, settings, dtype):
    got = same_tokens(poisoned, arguments((3 * torch.randn(2, VOCABULARY)).to(dtype), **settings))
    assert (got >= 0).all() and (got < VOCABULARY).all()


@pytest.mark.parametrize("k", [FEW + 1, CHUNK + 3], ids=["just-long", "more-than-a-chunk"])
def test_large_top_k(poisoned, k):
    """The search over all logits; bfloat16 has many ties at the threshold."""
    got = same_tokens(poisoned, arguments(torch.randn(2, VOCABULARY).bfloat16(), top_k=k, temperature=3.0, penalty=1.1))
    assert got.shape == (2,)


def test_rows_with_different_settings(poisoned):
    settings = {
        "temperature": [0.0, 1.0, 0.5, 2.0], "top_k": [3, 0, 7, 1], "penalty": [1.5, 1.0, 1.2, 1.0], "window": [2, 2, 11, 0]
    }  # fmt: skip
    got = same_tokens(poisoned, arguments(torch.randn(4, VOCABULARY), **settings))
    assert got.shape == (4,)


@pytest.mark.parametrize("vocabulary", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1])
def test_vocabulary_sizes(poisoned, vocabulary):
    logits = torch.randn(2, vocabulary)
    got = same_tokens(poisoned, arguments(logits, top_k=3, length=min(vocabulary, 6), window=3, penalty=1.4))
    assert (got < vocabulary).all()


def test_ties_go_to_the_lowest_ids(poisoned):
    """All logits equal, across chunks: top-k means ids 0 … k-1, greedy means 0; both zeros count as equal."""
    flat = torch.zeros(9, VOCABULARY)
    flat[:, ::2] = -0.0
    got = same_tokens(poisoned, arguments(flat, top_k=3))
    assert set(got.tolist()) <= {0, 1, 2}
    assert (same_tokens(poisoned, arguments(flat[:1], temperature=0.0)) == 0).all()


def test_masked_logits_are_never_drawn(poisoned):
    logits = torch.full((2, VOCABULARY), float("-inf"))
    logits[:, [5, CHUNK + 1]] = 1.0
    got = same_tokens(poisoned, arguments(logits, top_k=2, length=0))
    assert set(got.tolist()) <= {5, CHUNK + 1}


@jit
def words_kernel(ids, seeds, out, step, stream, N: tl.constexpr):
    lanes = tl.arange(0, N)
    word = philox_word_triton(tl.load(ids + lanes), step, tl.load(seeds), stream)
    tl.store(out + lanes, word.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 0x123456789ABCDEF, -(2**63)])
def test_philox_is_the_same_to_the_bit(seed):
    ids = torch.cat((torch.arange(60), torch.tensor([168447, 2**31 - 1, 65535, 65536]))).int()
    for stream, step in ((0, 0), (1, 4095)):
        out = torch.empty(64, dtype=torch.int64)
        launch(words_kernel, (1,), ids, torch.tensor([seed]), out, step, stream, N=64)
        zero = torch.zeros(64, dtype=torch.int64)
        key = (torch.tensor(seed) & 0xFFFFFFFF, (torch.tensor(seed) >> 32) & 0xFFFFFFFF)
        assert torch.equal(out, philox((ids.long(), zero + step, zero + stream, zero), key)[0])


@pytest.mark.parametrize("rows", [1, 127, 129], ids=["one", "block-minus-1", "block-plus-1"])
def test_advance_streams(poisoned, rows):
    slots = torch.randperm(rows + 3)[:rows]
    ids = [3, 4, 1, 2, 6]

    def state():
        generator = torch.Generator().manual_seed(rows)
        n = rows + 3
        histories = torch.randint(0, 9, (2, n, 12), generator=generator, dtype=torch.int32)
        lengths = torch.randint(0, 9, (n,), generator=generator)
        flags = torch.randint(0, 2, (2, n), generator=generator).bool()
        return [*histories, lengths, flags[0], torch.zeros(n, dtype=torch.int64), flags[1], torch.full((n,), 8)]

    tokens = torch.randint(0, 9, (2, rows))
    mine, theirs = state(), state()
    with poisoned():
        got = advance_streams_triton(*tokens, slots, *mine, ids)
    for a, b in zip((*got, *mine), (*advance_streams(*tokens, slots, *theirs, ids), *theirs)):
        assert torch.equal(a, b)
