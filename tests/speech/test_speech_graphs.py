"""Captured solves and vocoder passes equal eager ones, with idle rows and streams, shape after shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from speech_models import small_vocoder

from antiphon.checkpoint.presets import nano
from antiphon.execution.graphs import TapeGraphs
from antiphon.models.flow_dit import FlowDit
from antiphon.planner.fake_model import packed_shapes
from antiphon.speech import SpeechOptions, StreamingDetokenizer
from antiphon.speech.flow_solver import FlowJob, solve
from antiphon.speech.speech_graphs import MAX_ROWS, FlowGraphs, GraphCache, GraphedVocoder, _FillGraph, row_bucket
from antiphon.speech.window_pool import WindowPool


@pytest.fixture(scope="module")
def dit():
    generator = torch.Generator().manual_seed(3)
    shapes = packed_shapes(nano(), dtype=torch.float32)["flow"]
    return FlowDit(nano().flow, {k: torch.randn(t.shape, generator=generator) * 0.2 for k, t in shapes.items()})


def speak(dit, graphs, overlap="lookahead"):
    """Three streams of unlike lengths in shared batches, then one alone."""
    voice = StreamingDetokenizer(dit, small_vocoder(), max_streams=3, graphs=graphs)
    options = SpeechOptions(first_chunk=4, chunk=3, look_ahead=2, ode_steps=3, overlap=overlap, vocoder_context=4)
    streams = [voice.open(options, seed=i) for i in range(3)]
    for i, stream in enumerate(streams):
        stream.push([(7 * i + t) % 60 for t in range(15 - 4 * i)])
        stream.finish()
    out = [[] for _ in streams]
    while ready := [i for i, s in enumerate(streams) if s.ready]:
        for i, piece in zip(ready, voice.run([(streams[i], *streams[i].pop()) for i in ready])):
            out[i].append(piece)
    return voice, [np.concatenate(pieces) for pieces in out]


@pytest.mark.parametrize("overlap", ["lookahead", "reference"])
def test_replay_equals_eager(dit, overlap):
    _, want = speak(dit, None, overlap)
    voice, got = speak(dit, TapeGraphs(), overlap)
    for g, w in zip(got, want):
        assert len(g) == len(w) > 0
        np.testing.assert_allclose(g, w, atol=3e-5)  # products over other numbers of rows: 1.7e-5 to 2.0e-5
    assert any(voice.vocoder._cache._built.values()), "at least one shape came twice and was captured"
    assert any(voice._passes._solves._built.values()) and any(voice._passes._fills._built.values())


BUCKETS = sorted({row_bucket(rows) for rows in range(4, MAX_ROWS + 1, 4)})
WINDOWS = (0, 40, 900, 896, 12, 300, 900, 4)
"""Rows in the streams' windows: empty, some, full, full after the next rows."""


def solve_jobs(pool, rows: int, streams: int) -> list[FlowJob]:
    """Chunks of unlike lengths with ``rows`` rows in all; a sixth of each is look-ahead, the first one keeps all of its rows."""
    generator = torch.Generator().manual_seed(rows)
    bounds = np.linspace(0, rows // 4, streams + 1).astype(int)
    jobs = []
    for index, length in enumerate(np.diff(bounds).tolist()):
        slot = pool.acquire()
        slot.advance(WINDOWS[index])
        tokens, noise = [(5 * index + t) % 60 for t in range(length)], torch.randn(4 * length, 80, generator=generator)
        kept = 4 * (length - (length // 6 if index else 0))
        jobs.append(FlowJob(tokens, 30 + slot.num_rows, noise, slot, kept, fill=True))
    return jobs


def filled_pool(dit, streams: int) -> WindowPool:
    pool = WindowPool(dit.config, streams, torch.float32, dit.device)
    pool.window.storage.normal_(generator=torch.Generator().manual_seed(0))
    return pool


@pytest.mark.parametrize("rows", BUCKETS)
def test_every_bucket_of_rows_full_and_hardly_filled(dit, rows):
    """Solve and fill by replay, the second time with other inputs, against the plain loops; nothing else in the window changes."""
    streams = 1 + BUCKETS.index(rows) % len(WINDOWS)
    smaller = max((size for size in BUCKETS if size < rows), default=0)
    pools = [filled_pool(dit, streams) for _ in range(2)]
    graphs = FlowGraphs(dit, pools[1].window, TapeGraphs())
    for count in (rows, rows, max(smaller + 4, 4 * streams)):
        plain, replayed = (solve_jobs(pool, count, streams) for pool in pools)
        want = solve(dit, pools[0].window, plain, 2)
        got = solve(dit, pools[1].window, replayed, 2, graphs)
        torch.testing.assert_close(torch.cat(got), torch.cat(want), rtol=0, atol=2e-5)
        windows = [pool.window.storage[:, :, :-1] for pool in pools]
        torch.testing.assert_close(windows[1], windows[0], rtol=0, atol=2e-5)
        for pool, jobs in zip(pools, (plain, replayed)):
            for job in jobs:
                pool.release(job.slot)
    assert row_bucket(count) == rows and len([g for g in graphs._solves._built.values() if g]) == 1
    assert any(graphs._fills._built.values())


def test_a_capture_writes_into_no_window(dit):
    pool = filled_pool(dit, 2)
    before = pool.window.storage.clone()
    graphs = FlowGraphs(dit, pool.window, TapeGraphs())
    for _ in range(2):
        graphs._fills.get("key", lambda: _FillGraph(graphs, 96, 2))
    assert torch.equal(pool.window.storage[:, :, :-1], before[:, :, :-1])
    assert not torch.equal(pool.window.storage[:, :, -1], before[:, :, -1])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("frames", [7, 24, 48, 209])
@pytest.mark.parametrize("items", [1, 2, 3, 5])
def test_every_kind_of_vocoder_pass(items, frames, padded):
    """Chunk lengths of the engine and batches that fill a graph or do not."""
    vocoder = small_vocoder()
    captured = GraphedVocoder(vocoder.config, vocoder.weights, TapeGraphs())
    generator = torch.Generator().manual_seed(items)
    lengths = (frames - 2 * (torch.arange(items) % 2)).clamp_min(7) if padded else None
    for _ in range(3):
        mel = torch.randn(items, frames, 80, generator=generator)
        got, want = captured._generate(mel, lengths), vocoder._generate(mel, lengths)
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    assert [bool(graph) for graph in captured._cache._built.values()] == [True]


@pytest.mark.parametrize(
    ("rows", "bucket"), [(4, 24), (48, 48), (52, 72), (168, 168), (196, 240), (384, 384), (388, 480), (1344, 1344)]
)
def test_row_buckets(rows, bucket):
    assert row_bucket(rows) == bucket
    assert bucket - rows <= max(24, rows / 4)


def test_a_shape_is_built_at_its_second_sight_and_the_oldest_goes():
    cache, built = GraphCache(2), []
    for key in "aabbcca":
        cache.get(key, lambda key=key: built.append(key) or key)
    assert built == ["a", "b", "c"]
    assert cache.get("a", lambda: "again") == "again"
