"""The null model: tokens depend on seed and step alone, through the real scheduler."""

from __future__ import annotations

import numpy as np

from antiphon.scheduler import KVPools, RequestState, Scheduler, SchedulerConfig
from antiphon.scheduler.null_model import NullModel


def generate(names: list[str], pages: int) -> dict[str, tuple[list[int], list[int]]]:
    scheduler = Scheduler(SchedulerConfig(64, 8, 256), KVPools(pages, pages, pages))
    model, streams = NullModel(text_steps=9, audio_steps=30), {}
    for name in names:
        ids = np.arange(20)
        scheduler.add(RequestState(name, ids, ids, output_type="both", max_new_tokens=100))
    while (plan := scheduler.schedule(0.0)) is not None:
        for state in scheduler.commit(plan, model.run(plan)):
            streams[state.request_id] = (state.generated_text.tolist(), state.generated_audio.tolist())
    scheduler.check()
    return streams


def test_tokens_alone_equal_tokens_in_a_batch_under_page_pressure():
    names = [f"r{index}" for index in range(6)]
    together = generate(names, pages=8)
    assert set(together) == set(names)
    for name in names:
        assert generate([name], pages=64)[name] == together[name]


def test_streams_and_seeds_differ_and_lengths_are_as_asked():
    streams = generate(["a", "b"], pages=64)
    assert [len(s) for pair in streams.values() for s in pair] == [30] * 4
    assert len({tuple(s) for pair in streams.values() for s in pair}) == 4
