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
from antiphon.speech.speech_graphs import GraphCache, row_bucket


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
        np.testing.assert_allclose(g, w, atol=2e-5)
    assert any(voice.vocoder._cache._built.values()), "at least one shape came twice and was captured"
    flow = voice._integrate.__self__
    assert any(flow._cache._built.values())


@pytest.mark.parametrize(
    ("rows", "bucket"), [(4, 48), (48, 48), (49, 96), (168, 192), (384, 384), (388, 480), (1344, 1344)]
)
def test_row_buckets(rows, bucket):
    assert row_bucket(rows) == bucket
    assert bucket - rows <= max(48, rows / 3)


def test_a_shape_is_built_at_its_second_sight_and_the_oldest_goes():
    cache, built = GraphCache(2), []
    for key in "aabbcca":
        cache.get(key, lambda key=key: built.append(key) or key)
    assert built == ["a", "b", "c"]
    assert cache.get("a", lambda: "again") == "again"
