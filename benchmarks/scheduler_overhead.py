"""What the scheduler costs per step: ``python -m benchmarks.scheduler_overhead [--json OUT]``.

A null model answers at once, so a step is scheduling and bookkeeping alone. Steady decoding of N streams with the demo's
mixture of the two output types; every request that ends is replaced by a new one with a 200-position prompt, so that
admission, chunked prefill, page turnover, the prefix cache and releases are part of the steps they happen in.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from antiphon.scheduler import KVPools, RequestState, Scheduler, SchedulerConfig
from antiphon.scheduler.deadline_policy import DeadlinePolicy
from antiphon.scheduler.null_model import NullModel
from antiphon.scheduler.policy import FcfsPolicy

STREAMS = (1, 8, 16, 32, 64, 128, 256)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--policy", choices=("fcfs", "deadline"), nargs="+", default=["fcfs", "deadline"])
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [measure(n, policy, arguments.steps) for policy in arguments.policy for n in arguments.streams]
    print(f"{'policy':>9} {'streams':>8} {'median ms':>10} {'p95 ms':>8} {'schedule':>9} {'commit':>8} {'target':>7}")
    for row in rows:
        print(
            f"{row['policy']:>9} {row['streams']:>8} {row['ms_median']:>10.3f} {row['ms_p95']:>8.3f} "
            f"{row['schedule_ms_median']:>9.3f} {row['commit_ms_median']:>8.3f} {row['target_ms'] or '':>7}"
        )
    met = all(row["ms_median"] < row["target_ms"] for row in rows if row["target_ms"])
    summary = {
        "benchmark": "scheduler_overhead",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.processor() or platform.machine(),
        "command": " ".join(["python -m benchmarks.scheduler_overhead", *sys.argv[1:]]),
        "targets_met": met,
        "rows": rows,
    }
    line = json.dumps(summary)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
