"""Replay equals eager for every decode graph that an engine captures: all sizes, kinds and widths, full and partly filled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from decode_world import CONFIG, World, random_model

from antiphon.execution import decode_graphs, graphs
from antiphon.execution.decode_graphs import ROWS, Bucket, DecodeGraphs, Kind
from antiphon.execution.graphs import TapeGraphs

NARROW, WIDE = 1, 4
SMALL = replace(CONFIG, max_positions=WIDE * 16)
SPEAKS_NOW = replace(SMALL, audio_delay=1)
STATE = ("text_history", "audio_history", "history_len", "stop", "text_ended")
REQUESTS = {
    Kind.TEXT: [(False, False)],
    Kind.AUDIO: [(True, True)],
    Kind.DELAY: [(True, False), (False, False), (True, True)],
    Kind.BOTH: [(True, False), (False, False), (True, True), (True, False)],
}
"""(speaks, text_ended) of the requests of a step of each kind, repeated as often as needed; the first makes the kind."""


@pytest.fixture(scope="module")
def models():
    """By kind; the audio head has work after the first step only where the delay is one step."""
    return {kind: random_model(SPEAKS_NOW if kind is Kind.BOTH else SMALL) for kind in Kind}


@pytest.fixture(autouse=True)
def short_context(monkeypatch):
    """Few positions make a context long; no warm-ups, which other tests run."""
    monkeypatch.setattr(decode_graphs, "SHORT_CONTEXT", NARROW * 16)
    monkeypatch.setattr(graphs, "WARM_UPS", 0)


def requests(kind: Kind, count: int, wide: bool) -> list[tuple[bool, bool, int]]:
    """``count`` requests; prompts of 1 to 14 positions, the last one of 40 if the wide block tables are wanted."""
    mix = REQUESTS[kind]
    made = [(*mix[i % len(mix)], 1 + 3 * i % 14) for i in range(count)]
    return [*made[:-1], (*made[-1][:2], 40)] if wide else made


def fills(rows: int, wide: bool) -> list[int]:
    """The most and the fewest requests that take a graph of ``rows`` rows; with long contexts only the fewest."""
    fewest = max((size for size in ROWS if size < rows), default=0) + 1
    return [fewest] if wide else sorted({fewest, rows})


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("rows", ROWS)
def test_replay_equals_eager(models, rows, kind, wide):
    """Tokens, flags, histories and every page that somebody owns, of slots that run and of slots that do not."""
    model = models[kind]
    for count in fills(rows, wide):
        eager, replayed = (World(model, requests(kind, count, wide)) for _ in range(2))
        captured = DecodeGraphs(model, replayed.kv, replayed.state, TapeGraphs(), model.config.audio_delay)
        batch = replayed.decode_batch()
        assert captured.fits(batch) and captured.widths == (NARROW, WIDE)
        assert captured.bucket(batch) == Bucket(rows, kind, WIDE if wide else NARROW)
        got = captured.run(batch)[0].numpy().copy()
        np.testing.assert_array_equal(got, eager.eager(), err_msg=f"{count} requests")
        for name in STATE:
            assert torch.equal(getattr(replayed.state, name)[:-1], getattr(eager.state, name)[:-1]), name
        assert_same_pages(replayed, eager)


def assert_same_pages(replayed: World, eager: World) -> None:
    """Keys and values but for the spare pages: rows beside a row may change its last bits, pages that nobody wrote stay 0."""
    written = 0
    for name in ("trunk", "upper"):
        got, want = (getattr(world.kv, name)[:, :, :-1] for world in (replayed, eager))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        untouched = (want == 0).flatten(3).all(-1)
        assert (got[untouched] == 0).all()
        written += int((~untouched).sum())
    assert written
