"""What the engine costs per step around the model: ``python -m benchmarks.engine_overhead [--json OUT]``.

A null runner answers at once with random tokens, so a step is scheduling, batch building, text decoding and deltas.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.execution.llm_runner import StepOutput
from antiphon.execution.step_batch import StepBatch
from antiphon.request import GenerationRequest, sampling_params
from antiphon.runtime import Runtime, load_runtime

from .engine import locate
from .report import add_json_option, publish, table

TARGET_MS = {64: 0.3, 256: 1.0}


class NullState:
    """Takes part in nothing."""

    def open(self, *_: object) -> None:
        """A slot changes hands."""

    def restore(self, *_: object) -> None:
        """A slot's history comes back."""


class NullStep:
    """A step that is done already."""

    def __init__(self, output: StepOutput):
        self._output = output

    def outputs(self) -> list[StepOutput]:
        return [self._output]


class NullRunner:
    """Random text tokens, never an end. ``seconds`` is what it needed itself."""

    def __init__(self, text_ids: int):
        self.state = NullState()
        self.random = np.random.default_rng(0)
        self.text_ids = text_ids
        self.seconds = 0.0

    def copy_pages(self, *_: object) -> None:
        """There are none."""

    def start(self, batch: StepBatch, steps: int) -> NullStep:
        started = time.perf_counter()
        count = int(batch.samples.sum())
        text = self.random.integers(0, self.text_ids, count).tolist()
        output = StepOutput(text, [0] * count, [False] * count, [0] * count)
        self.seconds += time.perf_counter() - started
        return NullStep(output)


def measure(runtime: Runtime, streams: int, steps: int) -> dict:
    """Median and 95th percentile over ``steps`` steps of ``streams`` decoding requests."""
    engine = Engine(runtime, EngineConfig(max_sequences=streams, token_budget=streams + 512, kv_pages=streams * 40))
    engine.runner = NullRunner(runtime.tokenizer.num_base)
    for number in range(streams):
        message = {"role": "user", "message_type": "text", "content": f"hello {number}"}
        engine.add(GenerationRequest([message], "text", sampling_params(max_new_tokens=600)))
    for _ in range(20):
        engine.step()
    times = []
    for _ in range(steps):
        engine.runner.seconds = 0.0
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started - engine.runner.seconds)
    return {
        "streams": streams,
        "ms_median": 1e3 * float(np.median(times)),
        "ms_p95": 1e3 * float(np.percentile(times, 95)),
        "target_ms": TARGET_MS.get(streams),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    add_json_option(parser)
    arguments = parser.parse_args()
    runtime = load_runtime(locate("tiny", Path(".")))
    rows = [measure(runtime, streams, arguments.steps) for streams in arguments.streams]
    print(table(rows, list(rows[0])))
    publish("engine_overhead", rows, arguments.json)


if __name__ == "__main__":
    main()
