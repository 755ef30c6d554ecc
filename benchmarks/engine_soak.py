"""Aborts at random moments under load: ``python -m benchmarks.engine_soak [--seconds 120] [--json OUT]``.

Requests of both kinds arrive, share prefixes, press on few pages and are cancelled at random moments. At the end no page, slot or
voice may be lost, no request stuck, and memory must be flat: the second half may not hold more than the first by over 5 %.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path

import numpy as np

from antiphon.deltas import FinishDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.request import GenerationRequest, sampling_params
from antiphon.runtime import Runtime, load_runtime
from antiphon.speech import SpeechOptions

from .engine import locate
from .report import add_json_option, publish, table

SPEECH = SpeechOptions(first_chunk=14, chunk=20, look_ahead=4, ode_steps=3)
TARGET_IN_FLIGHT = 10


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def random_request(rng: random.Random) -> GenerationRequest:
    """A question of one of a few beginnings, so that prefixes are shared; half of the answers are spoken."""
    words = rng.choice(["What is the capital of", "Compare", "Good morning!"]) + " and" * rng.randint(0, 30)
    messages = [{"role": "user", "message_type": "text", "content": words}]
    if rng.random() < 0.3:
        sound = np.random.default_rng(rng.randint(0, 5)).standard_normal(8000).astype(np.float32) * 0.1
        messages.append({"role": "user", "message_type": "audio", "content": (sound, 16_000)})
    sampling = sampling_params(text_temperature=1.0, audio_temperature=1.0, max_new_tokens=rng.randint(5, 60))
    return GenerationRequest(messages, rng.choice(["text", "both"]), sampling, SPEECH, priority=rng.choice([0, 0, 1]))


def soak(runtime: Runtime, seed: int, seconds: float = math.inf, steps: float = math.inf) -> dict:
    """Run the load for so long or so many steps; one row of counts. AssertionError where something is lost or stuck."""
    rng = random.Random(seed)
    engine = Engine(runtime, EngineConfig(max_sequences=6, kv_pages=24, token_budget=64, max_voices=3))
    counts = {"added": 0, "finished": 0, "aborted": 0}
    memory: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(memory) < steps:
        while len(engine.live) < TARGET_IN_FLIGHT:
            engine.add(random_request(rng))
            counts["added"] += 1
        for _, delta in engine.step():
            assert not isinstance(delta, Exception), delta
            if isinstance(delta, FinishDelta):
                counts["aborted" if delta.reason == "abort" else "finished"] += 1
        if rng.random() < 0.05:
            engine.abort(rng.choice(list(engine.live)))
        memory.append(resident_bytes())
    for request_id in list(engine.live):
        engine.abort(request_id)
    counts["aborted"] += sum(isinstance(delta, FinishDelta) for _, delta in engine.step())
    assert not engine.has_work and counts["added"] == counts["finished"] + counts["aborted"], counts
    engine.check()
    warm, late = np.median(memory[len(memory) // 4 : len(memory) // 2]), np.median(memory[-len(memory) // 4 :])
    return {
        **counts,
        "steps": len(memory),
        "preemptions": engine.scheduler.num_preemptions,
        "memory_mb": late / 1e6,
        "memory_growth": float(late / warm),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    add_json_option(parser)
    arguments = parser.parse_args()
    row = soak(load_runtime(locate(arguments.model, Path("."))), arguments.seed, arguments.seconds)
    print(table([row], list(row)))
    publish("engine_soak", [row], arguments.json)
    return 0 if row["memory_growth"] < 1.05 else 1


if __name__ == "__main__":
    sys.exit(main())
