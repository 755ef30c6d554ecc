"""The native step from state to tokens against the operators: tokens, state, pages and work, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decode_world import CONFIG, MIXES, World, random_model

from antiphon.errors import EngineError
from antiphon_kernels import count_calls, use_backend
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

STATE = ("text_history", "audio_history", "history_len", "stop", "text_ended")
MANY = [(i % 3 > 0, i in (2, 7), 1 + i % 6) for i in range(16)]


@pytest.fixture(scope="module")
def model():
    return random_model()


def worlds(model, requests, **options) -> tuple[World, World]:
    """The same requests twice: on the native step, and on operators (the network itself may be one native call)."""
    ours, theirs = World(model, requests, **options), World(model, requests, **options)
    theirs.runner._token_step = None
    return ours, theirs


def native(world: World, steps: int = 1) -> np.ndarray:
    """Steps of one launch, [steps, 4, R]."""
    with count_calls() as calls:
        outputs = world.runner.start(world.decode_batch(), steps).outputs()
    assert calls["token_step", "native"] == steps and not calls["sample_tokens", "native"]
    world.steps, world.last = world.steps + steps, outputs[-1]
    return np.array([[o.text, o.audio, o.text_ended, o.stop] for o in outputs])


def same(ours: World, theirs: World) -> None:
    for name in STATE:
        assert torch.equal(getattr(ours.state, name), getattr(theirs.state, name)), name
    assert torch.equal(ours.kv.trunk, theirs.kv.trunk) and torch.equal(ours.kv.upper, theirs.kv.upper)
    assert ours.runner.counters == theirs.runner.counters


@pytest.mark.parametrize("mix", [*MIXES, "many"])
def test_equals_the_operators(model, mix, isa, with_threads):
    ours, theirs = worlds(model, MIXES.get(mix, MANY))
    with use_backend("native"):
        for step in range(12):
            got = with_threads(1 + step % 3, lambda: native(ours))
            np.testing.assert_array_equal(got[0], theirs.eager())
            if got[0, 3].any():  # nobody would schedule a request that has stopped
                break
            same(ours, theirs)
    assert step >= 5, "the delay of the audio head is behind us"


@pytest.mark.parametrize("mix", MIXES)
def test_several_steps_in_one_launch(model, mix):
    """Nobody's branches change within a launch, so a request whose text ends goes on drawing blanks, as in a graph."""
    ours, theirs = worlds(model, MIXES[mix])
    assert ours.runner.max_launch == 16 and theirs.runner.max_launch == 0
    for _ in range(3):
        np.testing.assert_array_equal(native(ours, 4), np.stack([theirs.eager() for _ in range(4)]))
    for name in STATE:
        assert torch.equal(getattr(ours.state, name), getattr(theirs.state, name)), name


def test_a_request_that_stops_runs_no_further(model):
    ours, theirs = worlds(model, MIXES["text"], limit=3)
    got = native(ours, 4)
    np.testing.assert_array_equal(got[:2], np.stack([theirs.eager() for _ in range(2)]))
    assert got[1, 3, 0] != 0
    assert ours.state.history_len[5] == 3 and ours.runner.counters.trunk_rows == 3 + 2
    assert (ours.kv.trunk[:, :, ours.own[5, 0], 5:] == 0).all(), "nothing is written behind the last position"


def test_operators_run_what_is_unusual(model):
    """Logits or states that somebody wants to see, other backends, prompts, more than 16 requests."""
    world, other = worlds(model, MIXES["all kinds"])
    step, seen = world.runner._token_step, []
    with count_calls() as calls:
        output = world.runner.run(world.decode_batch(), keep_logits=True)
        assert output.text_logits.shape == (4, CONFIG.vocab_size) and not calls["token_step", "native"]
    other.eager()
    world.last, world.steps = output, 2
    world.runner.run(world.decode_batch(), observe=lambda name, _: seen.append(name))
    assert "embed" in seen
    with use_backend("reference"):
        assert not step.fits(world.decode_batch()) and world.runner.max_launch == 0
    assert not step.fits(world.batch([0] * 5, [2] * 5, (np.arange(10), np.arange(10))))
    assert not step.fits(World(model, [(True, False, 2)] * 17).decode_batch())
    with pytest.raises(EngineError, match="several steps"):
        world.runner.start(world.decode_batch(), 2, keep_logits=True)


def test_out_of_bounds_is_an_error_and_no_write(model):
    world, _ = worlds(model, MIXES["speech"])
    batch, before = world.decode_batch(), world.kv.trunk.clone()
    world.state.history_len[int(world.slots[0])] = 10_000
    with pytest.raises(IndexError, match="history"):
        world.runner.start(batch)
    world.state.history_len[int(world.slots[0])] = 64
    with pytest.raises(IndexError, match="no page"):
        world.runner.start(batch)
    assert torch.equal(world.kv.trunk, before)
