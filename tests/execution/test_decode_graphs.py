"""Captured decode steps equal eager ones for every bucket and kind, with idle rows, several steps a replay, and stops inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decode_world import CONFIG, CPU, MIXES, SLOTS, World, random_model

from antiphon.errors import EngineError
from antiphon.execution.decode_graphs import DecodeGraphs, Kind
from antiphon.execution.graphs import TapeGraphs, forbid_sync


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("steps", [1, 3])
def test_replay_equals_eager(model, mix, steps):
    eager, replayed = World(model, MIXES[mix]), World(model, MIXES[mix])
    graphs = DecodeGraphs(model, replayed.kv, replayed.state, TapeGraphs(), CONFIG.audio_delay)
    kinds = set()
    for _ in range(9 // steps):
        batch = replayed.decode_batch()
        assert graphs.fits(batch)
        kinds.add(graphs.bucket(batch, steps).kind)
        got = graphs.run(batch, steps).numpy().copy()
        want = np.stack([eager.eager() for _ in range(steps)])
        np.testing.assert_array_equal(got, want)
        replayed.steps += steps
        replayed.last = eager.last
    n = torch.from_numpy(replayed.slots)
    for name in ("text_history", "audio_history", "history_len", "stop", "text_ended"):
        assert torch.equal(getattr(replayed.state, name)[n], getattr(eager.state, name)[n]), name
    torch.testing.assert_close(replayed.kv.trunk[:, :, :-1], eager.kv.trunk[:, :, :-1], rtol=1e-4, atol=1e-5)
    if mix in ("speech", "all kinds"):
        assert {Kind.DELAY, Kind.BOTH} <= kinds


def test_every_kind_and_size_is_captured_without_touching_a_request(model):
    world = World(model, MIXES["all kinds"])
    state = {k: v.clone() for k, v in vars(world.state).items() if isinstance(v, torch.Tensor)}
    pages = world.kv.trunk.clone()
    graphs = DecodeGraphs(model, world.kv, world.state, TapeGraphs(), CONFIG.audio_delay)
    graphs.prepare([1, 4], graphs.widths)
    assert len(graphs._built) == 2 * len(Kind) * len(graphs.widths)
    for name, before in state.items():
        assert torch.equal(getattr(world.state, name)[:SLOTS], before[:SLOTS]), name
    assert torch.equal(world.kv.trunk[:, :, :-1], pages[:, :, :-1])


def test_a_request_that_stops_inside_a_replay_is_idle_from_there(model):
    world = World(model, MIXES["text"], limit=3)
    other = World(model, MIXES["text"], limit=3)
    graphs = DecodeGraphs(model, world.kv, world.state, TapeGraphs(), CONFIG.audio_delay)
    got = graphs.run(world.decode_batch(), 4).numpy()
    stops = [other.eager() for _ in range(2)]
    np.testing.assert_array_equal(got[:2], np.stack(stops))
    assert stops[1][3, 0] != 0
    assert world.state.history_len[5] == 3
    assert (world.kv.trunk[:, :, world.own[5, 0], 5:] == 0).all(), "nothing is written behind the last position"


def test_a_runner_starts_several_steps_at_once_if_they_are_decodes(model):
    eager, launched = (World(model, MIXES["all kinds"]) for _ in range(2))
    launched.runner.graphs = DecodeGraphs(model, launched.kv, launched.state, TapeGraphs(), CONFIG.audio_delay)
    outputs = launched.runner.start(launched.decode_batch(), 3).outputs()
    got = [[o.text, o.audio, o.text_ended, o.stop] for o in outputs]
    np.testing.assert_array_equal(np.array(got), np.stack([eager.eager() for _ in range(3)]))
    assert launched.runner.max_launch >= 64 and eager.runner.max_launch <= 16
    with pytest.raises(EngineError, match="several steps"):
        eager.runner.start(eager.decode_batch(), 2, keep_logits=True)


def test_prefills_and_mixed_steps_do_not_fit(model):
    world = World(model, MIXES["speech"])
    graphs = DecodeGraphs(model, world.kv, world.state, TapeGraphs(), CONFIG.audio_delay)
    assert graphs.fits(world.decode_batch())
    assert not graphs.fits(world.batch([0, 9], [4, 1], (np.zeros(5), np.zeros(5))))
    world.steps = 0
    assert not graphs.fits(world.decode_batch())


def test_waiting_inside_a_capture_or_a_step_is_refused():
    x = torch.ones(3)
    with pytest.raises(EngineError, match="wait"):
        TapeGraphs().capture(lambda: x.sum().item())
    with forbid_sync(CPU), pytest.raises(EngineError, match="nonzero"):
        x.nonzero()
    assert x.sum().item() == 3
