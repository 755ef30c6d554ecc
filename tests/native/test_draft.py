"""A draft changes no token, whatever it is worth: launches with one against the same without, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from decode_world import MIXES, PAGES, SAMPLED, World, random_model

from antiphon.checkpoint.quantized import MATRICES, pad_inner
from antiphon.models.dual_qwen import DualQwen
from antiphon.request import SamplingParams, StreamSampling
from antiphon_kernels import Stop, use_backend
from antiphon_kernels.linear_weight import quantize_weight
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels._native import next_draft_length

STATE = ("history_len", "stop", "text_ended")
HEADS = ("lm_head", "audio_head")
GREEDY = SamplingParams(text=StreamSampling(0.0, 5, 1.3, 4), audio=StreamSampling(0.0, 5, 1.0, 64))


@pytest.fixture(scope="module")
def model():
    return random_model()


def is_matrix(name: str) -> bool:
    return name in HEADS or name.rpartition(".")[2] in MATRICES


def draft_of(model: DualQwen, kind: str) -> DualQwen:
    """``exact``: the same matrices in memory of their own; ``unrelated``: others; ``int8``: rounded."""
    weights = dict(model.weights)
    generator = torch.Generator().manual_seed(9)
    for name, weight in model.weights.items():
        if not is_matrix(name):
            continue
        if kind == "int8":
            weights[name], weights[f"{name}.scale"] = quantize_weight(pad_inner(name, weight), "int8")
        else:
            other = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight.dtype)
            weights[name] = weight.clone() if kind == "exact" else other * 0.15
    return DualQwen(model.config, weights)


def requests(count: int) -> list[tuple[bool, bool, int]]:
    """Speech, text, speech whose text has ended; prompts of 1 to 13 positions: pages of 16 fill at different steps."""
    return [(i % 3 > 0, i % 5 == 4, 1 + 4 * (i % 4)) for i in range(count)]


def worlds(model, draft, mix, limit=40, sampling=SAMPLED) -> tuple[World, World]:
    """The same requests with a draft and without."""
    return World(model, mix, limit, sampling, draft), World(model, mix, limit, sampling)


def launch(world: World, steps: int) -> np.ndarray:
    """[steps, 4, R]; the flags of the batch are those before it, and stopped requests stay in it."""
    with use_backend("native"):
        outputs = world.runner.start(world.decode_batch(), steps).outputs()
    world.steps, world.last = world.steps + steps, outputs[-1]
    return np.array([[o.text, o.audio, o.text_ended, o.stop] for o in outputs])


def same(ours: World, theirs: World) -> None:
    """State, histories up to their lengths, and every position of a request whose pair counts, in every layer."""
    for name in STATE:
        assert torch.equal(getattr(ours.state, name), getattr(theirs.state, name)), name
    for slot, (speaks, _, prompt) in zip(ours.slots.tolist(), ours.requests):
        n = int(ours.state.history_len[slot])
        for name in ("text_history", "audio_history"):
            assert torch.equal(getattr(ours.state, name)[slot, :n], getattr(theirs.state, name)[slot, :n]), name
        for world_pages, other_pages, offset in (
            (ours.kv.trunk, theirs.kv.trunk, 0),
            (ours.kv.upper, theirs.kv.upper, 0),
            (ours.kv.upper, theirs.kv.upper, ours.pages),
        ):
            pages = torch.from_numpy(ours.own[slot]).long() + offset
            a, b = (kv[:, :, pages].flatten(2, 3)[:, :, : prompt + n - 1] for kv in (world_pages, other_pages))
            assert torch.equal(a, b), "keys and values"


def run_both(ours: World, theirs: World, launches: list[int]) -> None:
    for steps in launches:
        np.testing.assert_array_equal(launch(ours, steps), launch(theirs, steps))
        same(ours, theirs)
        if theirs.state.stop[torch.from_numpy(theirs.slots)].any():  # nobody would schedule them again
            return


@pytest.mark.parametrize("kind", ["exact", "unrelated", "int8"])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 16])
def test_a_draft_changes_nothing(model, count, kind, isa, with_threads):
    """Launches of 2, 7 and 16 steps, and of one, in which nothing is drafted; the six steps of delay are among them."""
    ours, theirs = worlds(model, draft_of(model, kind), requests(count))
    with_threads(1 + count % 2, lambda: run_both(ours, theirs, [2, 1, 7, 16]))
    work, plain = ours.runner.counters, theirs.runner.counters
    assert plain.drafted == plain.accepted == 0
    if count > 8:  # sixteen rows hold no two positions of each
        assert work == plain
    elif kind == "exact":
        assert work.accepted == work.drafted > 0
        assert replace(work, drafted=0, accepted=0) == plain, "no row and no head is computed in vain"
    elif kind == "unrelated":
        assert work.accepted < 0.2 * work.drafted and work.trunk_rows > plain.trunk_rows
    print(f"{kind}, {count} requests: {work.accepted} of {work.drafted} pairs accepted")


@pytest.mark.parametrize("kind", ["exact", "unrelated", "int8"])
def test_in_bfloat16(model, kind, isa):
    """The working precision that a draft is for, with kernels of its own."""
    model = DualQwen(model.config, {name: weight.bfloat16() for name, weight in model.weights.items()})
    ours, theirs = worlds(model, draft_of(model, kind), requests(4))
    run_both(ours, theirs, [5, 12])
    work = ours.runner.counters
    assert work.drafted > 0 and (work.accepted == work.drafted) == (kind == "exact")


@pytest.mark.parametrize("kind", ["exact", "unrelated"])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(text=StreamSampling(0.0, 5, 1.3, 4), audio=StreamSampling(0.0, 5, 1.2, 2)),
        SamplingParams(text=StreamSampling(1.5, 0, 1.0, 16), audio=StreamSampling(1.5, 0, 1.5, 6)),
        SamplingParams(text=StreamSampling(0.7, 3, 1.0, 16), audio=StreamSampling(0.9, 20, 1.0, 64)),
    ],
    ids=["greedy with penalties", "all ids", "few ids"],
)
def test_any_sampling(model, sampling, kind):
    """A pair is drawn from the history before it, which ends in the middle of what was drafted, as windows do."""
    ours, theirs = worlds(model, draft_of(model, kind), requests(3), sampling=sampling)
    run_both(ours, theirs, [7, 7, 7])
    work = ours.runner.counters
    assert work.drafted > 0 and (kind == "unrelated" or work.accepted == work.drafted)


@pytest.mark.parametrize("kind", ["exact", "unrelated", "int8"])
@pytest.mark.parametrize("steps", [3, 7, 16])
def test_ends_inside_a_launch(model, kind, steps):
    """Text and answers that end where the model says so: ids that these requests draw are made its ends."""
    mix = requests(5)
    probe, _ = worlds(model, None, mix)
    pairs = launch(probe, 12)
    eos, end = int(pairs[3, 0, 1]), int(pairs[8, 1, 2])  # of two speakers: a text's fourth id, a later speech token
    special = replace(model.config.special, text_eos=eos, msg_end=end)
    ending = DualQwen(replace(model.config, special=special), model.weights)
    ours, theirs = worlds(ending, draft_of(ending, kind), mix)
    seen = np.zeros((0, 4, len(mix)), np.int64)
    while len(seen) < 12:
        got = launch(ours, steps)
        np.testing.assert_array_equal(got, launch(theirs, steps))
        same(ours, theirs)
        seen = np.concatenate((seen, got))
    assert seen[3, 2, 1] and Stop(seen[8, 3, 2]) is Stop.MSG_END, "as foreseen"
    if kind == "exact":
        assert ours.runner.counters.trunk_rows == theirs.runner.counters.trunk_rows, "nothing behind an end is computed"


@pytest.mark.parametrize("limit", [2, 5, 9])
def test_nothing_is_drafted_behind_the_limit(model, limit):
    """The last pair needs no draft, and no position behind it is written."""
    ours, theirs = worlds(model, draft_of(model, "exact"), MIXES["text"], limit=limit)
    np.testing.assert_array_equal(launch(ours, 16), launch(theirs, 16))
    same(ours, theirs)
    assert Stop(int(ours.state.stop[5])) is Stop.LIMIT
    assert ours.runner.counters.trunk_rows == theirs.runner.counters.trunk_rows
    assert ours.runner.counters.drafted < max(1, limit - 1)
    assert torch.equal(ours.kv.trunk, theirs.kv.trunk) and torch.equal(ours.kv.upper, theirs.kv.upper)


@pytest.mark.parametrize("kind", ["exact", "unrelated"])
def test_up_to_the_end_of_the_pages(model, kind):
    """Drafts stay inside a launch, so one that ends at the last position of the table does not reach behind it."""
    ours, theirs = worlds(model, draft_of(model, kind), [(False, False, 3)], limit=1000)
    run_both(ours, theirs, [16, 16, 16, 13])
    assert ours.state.history_len[5] + 3 == 16 * PAGES + 1
    with pytest.raises(IndexError, match="no page"):
        launch(ours, 2)


def test_a_failed_launch_leaves_no_draft_in_the_state(model):
    """Out of bounds is an error before anything is drafted."""
    ours, _ = worlds(model, draft_of(model, "exact"), requests(2))
    before = [getattr(ours.state, name).clone() for name in (*STATE, "text_history", "audio_history")]
    ours.requests = [(speaks, ended, prompt + 16 * PAGES) for speaks, ended, prompt in ours.requests]
    with pytest.raises(IndexError, match="no page"):
        launch(ours, 4)
    after = [getattr(ours.state, name) for name in (*STATE, "text_history", "audio_history")]
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize(
    ("length", "drafted", "accepted", "expected"),
    [(4, 4, 4, 5), (7, 7, 7, 7), (4, 4, 2, 3), (4, 4, 0, 1), (1, 1, 0, 1), (1, 1, 1, 2), (4, 0, 0, 4), (6, 2, 2, 7)],
)
def test_length_of_the_next_draft(length, drafted, accepted, expected):
    """One more where all was right, also where the launch left room for fewer; else as far as it went; at least one."""
    assert next_draft_length(length, drafted, accepted) == expected
