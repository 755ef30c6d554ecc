"""A draft changes no token: launches with one against the same launches without, bit for bit, whatever the draft is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decode_world import SAMPLED, World, random_model

from antiphon.checkpoint.quantized import MATRICES, pad_inner
from antiphon.models.dual_qwen import DualQwen
from antiphon.request import SamplingParams, StreamSampling
from antiphon_kernels import use_backend
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
    """Speech, text and speech whose text has ended, with prompts of 1 to 13 positions: pages of 16 fill at different steps."""
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
    """Launches of 2, 7 and 16 steps (and of one, in which nothing is drafted); the six steps of delay are among them."""
    ours, theirs = worlds(model, draft_of(model, kind), requests(count))
    with_threads(1 + count % 3, lambda: run_both(ours, theirs, [2, 1, 7, 16]))
    work, plain = ours.runner.counters, theirs.runner.counters
    assert plain.drafted == plain.accepted == 0
    if count > 8:  # sixteen rows hold no two positions of each
        assert work.drafted == 0 and work == plain
    else:
        assert work.drafted > 0
    if kind == "exact":
        assert work.accepted == work.drafted and work.trunk_rows == plain.trunk_rows, "nothing is computed in vain"
    elif kind == "unrelated" and count <= 8:
        assert work.accepted < 0.2 * work.drafted and work.trunk_rows > plain.trunk_rows
    print(f"{kind}, {count} requests: {work.accepted} of {work.drafted} pairs accepted")
