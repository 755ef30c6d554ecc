"""Captured decode steps equal eager ones for every bucket and kind, with idle rows, several steps a replay, and stops inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antiphon.checkpoint.presets import nano
from antiphon.errors import EngineError
from antiphon.execution.decode_graphs import DecodeGraphs, Kind
from antiphon.execution.decode_state import DecodeState
from antiphon.execution.graphs import TapeGraphs, forbid_sync
from antiphon.execution.kv_cache import KVSizes, allocate
from antiphon.execution.llm_runner import LlmRunner
from antiphon.execution.step_batch import StepBatch
from antiphon.models.dual_qwen import DualQwen
from antiphon.planner.fake_model import packed_shapes
from antiphon.request import SamplingParams, StreamSampling

CONFIG = nano().llm
SLOTS, PAGES = 6, 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return random_model()


def random_model() -> DualQwen:
    """A small model with branches of unequal depth."""
    generator = torch.Generator().manual_seed(1)
    shapes = packed_shapes(nano(), dtype=torch.float32)["llm"]
    return DualQwen(CONFIG, {name: torch.randn(t.shape, generator=generator) * 0.15 for name, t in shapes.items()})


class World:
    """One copy of pages and state, and the host's view of its requests: every slot owns the pages of its number."""

    def __init__(self, model, requests, limit=40):
        pages = SLOTS * PAGES
        self.requests = requests  # (speaks, text_ended, prompt)
        self.kv = allocate(CONFIG, KVSizes(pages + 1, pages, pages + 1), torch.float32, CPU)
        self.state = DecodeState(CONFIG, SLOTS + 1, CPU)
        self.runner = LlmRunner(model, self.kv, self.state)
        self.own = np.arange(pages, dtype=np.int32).reshape(SLOTS, PAGES)
        self.slots = np.array([5, 1, 3, 0, 4, 2][: len(requests)])
        self.steps = 0
        sampling = SamplingParams(text=StreamSampling(0.8, 5, 1.2, 2), audio=StreamSampling(1.1, 7, 1.1, 3))
        for slot, (speaks, *_) in zip(self.slots, requests):
            self.state.open(int(slot), sampling, 100 + int(slot), speaks, limit)
        self.prefill()

    def batch(self, starts, lengths, ids) -> StepBatch:
        speaks = np.array([r[0] for r in self.requests])
        ended = self.state.text_ended[torch.from_numpy(self.slots)].numpy()
        return StepBatch(
            slots=self.slots, starts=np.array(starts), lengths=np.array(lengths), samples=np.ones(len(ids[0]) and len(starts), bool),
            steps=np.full(len(starts), self.steps), run_text=~(speaks & ended), run_audio=speaks,
            audio_ids=np.asarray(ids[0], np.int64), text_ids=np.asarray(ids[1], np.int64), feature_rows=None, features=None,
            tables=(self.own, self.own, self.own + SLOTS * PAGES),
        )  # fmt: skip

    def prefill(self) -> None:
        lengths = [r[2] for r in self.requests]
        ids = np.arange(sum(lengths)) % 50 + 3
        self.last = self.runner.run(self.batch([0] * len(lengths), lengths, (ids, ids + 1)))
        for slot, (_, ended, _) in zip(self.slots, self.requests):
            self.state.text_ended[int(slot)] |= ended
        self.steps = 1

    def decode_batch(self) -> StepBatch:
        starts = [prompt + self.steps - 1 for *_, prompt in self.requests]
        return self.batch(starts, [1] * len(starts), (self.last.audio, self.last.text))

    def eager(self):
        self.last = self.runner.run(self.decode_batch())
        self.steps += 1
        return np.array([self.last.text, self.last.audio, self.last.text_ended, self.last.stop])


MIXES = {
    "text": [(False, False, 3)],
    "text and an idle row": [(False, False, 3), (False, False, 5), (False, False, 1)],
    "speech": [(True, False, 4), (True, False, 2)],
    "after the text": [(True, True, 4), (True, True, 7), (True, True, 2)],
    "all kinds": [(True, False, 4), (False, False, 9), (True, True, 2), (False, False, 6), (True, False, 1)],
}


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
    graphs.prepare([1, 4])
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


def test_steps_within_pages(model):
    world = World(model, [(False, False, 14)])
    graphs = DecodeGraphs(model, world.kv, world.state, TapeGraphs(), CONFIG.audio_delay)
    assert graphs.steps_within_pages(world.decode_batch()) == 2
    world.steps = 3
    assert graphs.steps_within_pages(world.decode_batch()) == 16


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
