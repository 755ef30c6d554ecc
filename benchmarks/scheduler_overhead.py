"""What the scheduler costs per step: ``python -m benchmarks.scheduler_overhead [--json OUT]``.

A null model answers at once, so a step is scheduling and bookkeeping alone. Steady decoding of N streams with the demo's
mixture of the two output types; every request that ends is replaced by a new one with a 200-position prompt, so that
admission, chunked prefill, page turnover, the prefix cache and releases are part of the steps they happen in.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time

import numpy as np

from antiphon.scheduler import DeadlinePolicy, FcfsPolicy, KVPools, RequestState, Scheduler, SchedulerConfig
from antiphon.scheduler.null_model import NullModel

from .report import add_json_option, publish, table

STREAMS = (1, 8, 16, 32, 64, 128, 256)
COLUMNS = (
    "policy", "streams", "ms_median", "ms_p95", "schedule_ms_median", "commit_ms_median", "decode_rows_mean",
    "prefill_rows_mean", "target_ms",
)  # fmt: skip
TARGET_MS = {64: 0.3, 256: 1.0}
PROMPT, ANSWER = 200, 300


class Load:
    """Keeps ``streams`` requests in flight."""

    def __init__(self, streams: int, policy: str):
        config = SchedulerConfig(token_budget=streams + 512, max_sequences=streams, max_positions=1024)
        pages = streams * (PROMPT + ANSWER) // 16 * 5 // 4 + 64
        self.policy = DeadlinePolicy() if policy == "deadline" else FcfsPolicy()
        self.scheduler = Scheduler(config, KVPools(pages, pages, pages), self.policy)
        self.model = NullModel(lambda name: int(name), text_steps=80)
        self.random = np.random.default_rng(0)
        self.num_added = 0
        self.streams = streams

    def refill(self, now: float, spread: bool = False) -> None:
        """Add what is missing; with ``spread`` the lengths differ, so that requests do not end together."""
        while len(self.scheduler.requests) < self.streams:
            audio, text = self.random.integers(0, 1000, (2, PROMPT))
            limit = int(self.random.integers(20, ANSWER)) if spread else ANSWER
            kind = "text" if self.num_added % 4 == 3 else "both"
            self.scheduler.add(
                RequestState(str(self.num_added), audio, text, output_type=kind, max_new_tokens=limit, arrival=now)
            )
            self.num_added += 1

    def step(self, now: float) -> tuple[float, float, int, int]:
        """Seconds in schedule, seconds in commit, decode rows, other rows."""
        begin = time.perf_counter()
        plan = self.scheduler.schedule(now)
        planned = time.perf_counter()
        results = self.model.run(plan)
        ran = time.perf_counter()
        self.scheduler.commit(plan, results)
        done = time.perf_counter()
        return planned - begin, done - ran, plan.num_decodes, plan.num_rows - plan.num_decodes


def measure(streams: int, policy: str, steps: int) -> dict:
    """Medians over ``steps`` steps after a warm-up that reaches the steady state."""
    load = Load(streams, policy)
    samples, now = [], 0.0
    load.refill(now, spread=True)
    for index in range(ANSWER + steps):
        load.refill(now)
        sample = load.step(now)
        now += 0.02
        if index >= ANSWER:
            samples.append(sample)
    load.scheduler.check()
    schedule, commit, decodes, other = np.array(samples).T
    total = 1e3 * (schedule + commit)
    return {
        "streams": streams,
        "policy": policy,
        "steps": steps,
        "ms_median": round(float(np.median(total)), 4),
        "ms_p95": round(float(np.percentile(total, 95)), 4),
        "schedule_ms_median": round(1e3 * float(np.median(schedule)), 4),
        "commit_ms_median": round(1e3 * float(np.median(commit)), 4),
        "decode_rows_mean": round(float(decodes.mean()), 1),
        "prefill_rows_mean": round(float(other.mean()), 1),
        "preemptions": load.scheduler.num_preemptions,
        "target_ms": TARGET_MS.get(streams),
    }


def profile(streams: int, policy: str, steps: int) -> None:
    """Where the time goes, by own time. The profiler itself makes calls about three times as dear."""
    load = Load(streams, policy)
    load.refill(0.0, spread=True)
    for index in range(ANSWER):
        load.refill(index * 0.02)
        load.step(index * 0.02)
    profiler = cProfile.Profile()
    for index in range(steps):
        now = (ANSWER + index) * 0.02
        load.refill(now)
        profiler.enable()
        plan = load.scheduler.schedule(now)
        profiler.disable()
        results = load.model.run(plan)
        profiler.enable()
        load.scheduler.commit(plan, results)
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--policy", choices=("fcfs", "deadline"), nargs="+", default=["fcfs", "deadline"])
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--profile", action="store_true", help="print a profile of the largest case instead")
    add_json_option(parser)
    arguments = parser.parse_args()
    if arguments.profile:
        profile(max(arguments.streams), arguments.policy[0], arguments.steps)
        return 0
    rows = [measure(n, policy, arguments.steps) for policy in arguments.policy for n in arguments.streams]
    print(table(rows, COLUMNS))
    met = all(row["ms_median"] < row["target_ms"] for row in rows if row["target_ms"])
    publish("scheduler_overhead", rows, arguments.json, targets_met=met)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
