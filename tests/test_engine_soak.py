"""Some hundred steps of the soak benchmark: nothing lost, nothing stuck. The two minutes are ``python -m benchmarks.engine_soak``."""

from __future__ import annotations

from benchmarks.engine_soak import soak


def test_random_aborts_under_load(tiny_runtime):
    row = soak(tiny_runtime, seed=1, steps=300)
    assert row["aborted"] > 0 and row["finished"] > 0 and row["preemptions"] > 0
