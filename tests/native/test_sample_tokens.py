"""Native sampling against the reference: the same token in every row, on every instruction set and thread count."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.sample_tokens import native_sample_tokens, supports
from antiphon_kernels.philox import gumbel
from antiphon_kernels.sample_tokens import reference

SPAN = 128
"""Logits of which the kernel keeps the largest (csrc/cpu/kernels/sample_tokens.cpp)."""
VOCABULARY = 20 * SPAN + 77
DTYPES = [torch.float32, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


def arguments(logits, *, temperature=1.0, top_k=5, penalty=1.0, window=4, length=12, stream=0):
    """Slots in another order than rows, parameters strided as in the decode state, the best ids in the penalty's window."""
    rows, vocabulary = logits.shape
    history = torch.randint(0, vocabulary, (rows + 2, length + 9), dtype=torch.int32)
    likely = logits.float().nan_to_num(0.0).topk(min(length, vocabulary)).indices.int()
    history[:rows, length - likely.shape[1] : length] = likely.flip(0, 1)
    columns = [torch.zeros(rows + 2, 2, dtype=d) for d in (torch.float32, torch.int64, torch.float32, torch.int64)]
    for column, value in zip(columns, (temperature, top_k, penalty, window), strict=True):
        column[:rows, stream] = torch.as_tensor(value, dtype=column.dtype)
    lengths, seeds = torch.full((rows + 2,), length), torch.randint(-(2**62), 2**62, (rows + 2,))
    return logits, history, lengths, torch.arange(rows).flip(0), *(c[:, stream] for c in columns), seeds, stream


def check(args) -> torch.Tensor:
    assert supports(*args)
    got = native_sample_tokens(*args)
    assert torch.equal(got, reference(*args))
    return got


SETTINGS = {
    "greedy": {"temperature": 0.0},
    "greedy, penalty": {"temperature": 1e-6, "penalty": 1.3},
    "just above greedy": {"temperature": 2e-6},
    "top 1": {"top_k": 1},
    "defaults": {"temperature": 0.8, "top_k": 10, "stream": 1},
    "penalty": {"top_k": 10, "penalty": 1.2, "window": 9},
    "strong penalty of all that is likely": {"top_k": 5, "penalty": 50.0, "window": 64, "length": 200},
    "window longer than the spans": {"top_k": 7, "penalty": 1.1, "window": 90, "length": 120},
    "history not longer than the window": {"top_k": 5, "penalty": 2.0, "window": 12},
    "penalty below one does nothing": {"top_k": 5, "penalty": 0.5},
    "top-k above the spans": {"top_k": 300, "temperature": 3.0, "penalty": 1.1},
    "unlimited": {"top_k": 0, "temperature": 0.7, "stream": 1},
    "unlimited, hot, penalty": {"top_k": 0, "temperature": 30.0, "penalty": 1.4, "window": 11},
    "all but one": {"top_k": VOCABULARY - 1, "temperature": 2.0},
    "top-k above the vocabulary": {"top_k": VOCABULARY + 5},
}


@pytest.mark.parametrize("spread", [0.2, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, dtype, spread, isa, with_threads):
    torch.manual_seed(3)
    args = arguments((spread * torch.randn(5, VOCABULARY)).to(dtype), **SETTINGS[name])
    for threads in (1, 2, 3):
        with_threads(threads, lambda: check(args))


@pytest.mark.parametrize("vocabulary", [1, 2, 7, SPAN - 1, SPAN, SPAN + 1, 4 * SPAN + 63])
@pytest.mark.parametrize("top_k", [0, 1, 3])
def test_vocabulary_sizes(vocabulary, top_k, isa):
    torch.manual_seed(vocabulary)
    for dtype in DTYPES:
        check(arguments(torch.randn(4, vocabulary).to(dtype), top_k=top_k, length=6, window=3, penalty=1.4))


def test_thousands_of_draws(isa):
    """Every setting at once, the real vocabulary's remainder, noise of many seeds: no draw may differ."""
    torch.manual_seed(11)
    rows = 2000
    logits = (torch.randn(rows, 1000) * (torch.rand(rows, 1) * 4)).bfloat16()
    settings = {
        "temperature": torch.rand(rows) * 2, "top_k": torch.randint(0, 64, (rows,)),
        "penalty": 0.9 + torch.rand(rows), "window": torch.randint(1, 15, (rows,)),
    }  # fmt: skip
    got = check(arguments(logits, **settings))
    assert got.unique().numel() > 300


@pytest.mark.parametrize("stream, length", [(0, 1), (1, 70_000)])
def test_the_noise_is_the_references_to_the_bit(stream, length, isa):
    """Logits that cancel the reference's noise: all scores are zero, and any bit of difference would win or lose."""
    vocabulary = 168_448
    _, *state = arguments(torch.zeros(2, vocabulary), top_k=0, length=length, stream=stream)
    slots, seeds = state[2], state[-2]
    noise = gumbel(torch.arange(vocabulary).expand(2, -1), torch.full((2, 1), length), seeds[slots][:, None], stream)
    assert native_sample_tokens(-noise, *state).tolist() == [0, 0]
    for row, id_ in ((0, 168_447), (1, 77_777)):
        noise[row, :id_] = noise[row, :id_].nextafter(torch.tensor(INF))  # a hair below zero before the last
        assert native_sample_tokens(-noise, *state)[row] == id_


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -INF, INF, NAN])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 3}, {"top_k": 0}], ids=["greedy", "3", "all"])
def test_equal_logits_go_to_the_lowest_ids(value, settings, isa):
    logits = torch.full((6, VOCABULARY), value)
    logits[:, ::2] *= -1 if value == 0 else 1
    got = check(arguments(logits, penalty=1.3, **settings))
    if settings != {"top_k": 0}:
        assert (got < 3 + 4).all(), "the four penalised ids may make way for the next"


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 4}, {"top_k": 0}], ids=["greedy", "4", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_infinite_and_missing_numbers(settings, dtype, isa):
    """-inf is never drawn while there is anything else, NaN counts as -inf, +inf wins."""
    torch.manual_seed(5)
    logits = torch.full((4, VOCABULARY), -INF)
    logits[0, [5, SPAN + 1]] = 1.0
    logits[1] = NAN
    logits[1, [7, 900]] = -3.0
    logits[2] = torch.randn(VOCABULARY)
    logits[2, ::3] = NAN
    logits[3] = torch.randn(VOCABULARY)
    logits[3, [800, 1900]] = INF
    got = check(arguments(logits.to(dtype), length=3, penalty=1.2, window=3, **settings))
    assert got[0] in (5, SPAN + 1) and got[1] in (7, 900) and got[2] % 3 and got[3] in (800, 1900)


def test_rising_and_falling_logits(isa):
    """Orders in which every logit beats, or no logit beats, those before it."""
    rising = torch.arange(VOCABULARY).float() / 8
    logits = torch.stack((rising, -rising, rising.flip(0), -rising.flip(0)))
    for top_k in (1, 10, 100):
        check(arguments(logits, top_k=top_k, temperature=8.0, penalty=1.1))


def test_rows_do_not_depend_on_the_batch(isa, with_threads):
    torch.manual_seed(9)
    logits, *state = arguments(torch.randn(16, VOCABULARY).bfloat16(), top_k=10, penalty=1.1)
    together = with_threads(3, lambda: native_sample_tokens(logits, *state))
    slots = state[2]
    for row in range(16):
        state[2] = slots[row : row + 1]
        assert native_sample_tokens(logits[row : row + 1], *state) == together[row]


def test_rows_at_any_distance_and_the_same_row_twice(isa):
    torch.manual_seed(10)
    wide = torch.randn(3, 2 * VOCABULARY)
    check(arguments(wide[:, 5 : 5 + VOCABULARY]))
    check(arguments(wide[:, ::2]))
    check(arguments(wide[:1, :VOCABULARY].expand(3, -1)))
    assert native_sample_tokens(*arguments(wide[:0])).shape == (0,)


def test_the_real_vocabulary(isa):
    torch.manual_seed(12)
    logits = (torch.randn(3, 168_448) * 2).bfloat16()
    settings = {"temperature": [0.0, 0.8, 1.0], "top_k": [5, 10, 0], "penalty": [1.0, 1.1, 1.0], "window": [16, 64, 16]}
    check(arguments(logits, length=100, **settings))


def test_refuses_what_it_cannot_take():
    args = list(arguments(torch.randn(2, 300)))
    assert supports(*args)
    assert not supports(args[0].half(), *args[1:])
    assert not supports(args[0], args[1].long(), *args[2:])
    assert not supports(*args[:4], args[4].contiguous(), *args[5:]), "one stride for all parameters"
