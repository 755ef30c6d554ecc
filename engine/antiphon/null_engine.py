"""An engine without a model: answers of a fixed shape at no cost, to test and measure the machinery around one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from .config import OUTPUT_TYPES, SAMPLE_RATE_OUT
from .deltas import AudioDelta, FinishDelta, TextDelta, Timings, Usage
from .engine import Output
from .engine_messages import EngineInfo, Statistics, Submit
from .errors import InputError, OverloadedError
from .prompt import load_recordings, parse_messages
from .request import GenerationRequest

CHUNK = np.sin(2 * np.pi * 220 / SAMPLE_RATE_OUT * np.arange(4800)).astype(np.float32) * 0.2


@dataclass(frozen=True)
class NullSpec:
    """steps: deltas of an answer, "word " each and, when it speaks, 0.2 s of a tone; step_seconds: pause per step.

    load_seconds: how long loading takes.
    """

    steps: int = 4
    step_seconds: float = 0.0
    max_sequences: int = 256
    max_in_flight: int = 4096
    load_seconds: float = 0.0

    def build(self) -> NullEngine:
        time.sleep(self.load_seconds)
        return NullEngine(self)


@dataclass
class _Live:
    request: GenerationRequest
    limit: int
    start: float = field(default_factory=time.perf_counter)
    first: float | None = None
    done: int = 0
    aborted: bool = False


class NullEngine:
    """Every running request gets one delta per step. Recordings are decoded, then ignored."""

    def __init__(self, spec: NullSpec):
        self.spec = spec
        self.info = EngineInfo("null", can_speak=True, max_positions=8192)
        self.num_steps = 0
        self._live: dict[str, _Live] = {}
        self._outputs: list[Output] = []

    def prepare(self, submit: Submit) -> GenerationRequest:
        request = submit.request
        request.sampling.check()
        if request.output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type must be one of {OUTPUT_TYPES}, got {request.output_type!r}")
        load_recordings(parse_messages(request.messages))
        return request

    def add(self, prepared: GenerationRequest, submit: Submit) -> None:
        if len(self._live) >= self.spec.max_in_flight:
            raise OverloadedError(f"{len(self._live)} requests are waiting or running, the limit; try again later")
        wanted = prepared.sampling.max_new_tokens
        self._live[submit.request_id] = _Live(prepared, self.spec.steps if wanted == -1 else min(wanted, self.spec.steps))

    def abort(self, request_id: str) -> bool:
        live = self._live.pop(request_id, None)
        if live is not None:
            self._outputs.append(Output(request_id, self._finish(live, "abort")))
        return live is not None

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._outputs)

    def step(self) -> list[Output]:
        if self.spec.step_seconds:
            time.sleep(self.spec.step_seconds)
        self.num_steps += 1
        outputs, self._outputs = self._outputs, []
        for request_id in list(self._live)[: self.spec.max_sequences]:
            outputs += self._advance(request_id, self._live[request_id])
        return outputs

    def _advance(self, request_id: str, live: _Live) -> list[Output]:
        live.done += 1
        live.first = time.perf_counter() - live.start if live.first is None else live.first
        outputs = [Output(request_id, TextDelta("word "))]
        if live.request.output_type == "both":
            outputs.append(Output(request_id, AudioDelta(CHUNK)))
        if live.done >= live.limit:
            del self._live[request_id]
            reason = "stop" if live.done >= self.spec.steps else "length"
            outputs.append(Output(request_id, self._finish(live, reason)))
        return outputs

    def _finish(self, live: _Live, reason: str) -> FinishDelta:
        speaks = live.request.output_type == "both"
        usage = Usage(8, live.done, live.done, live.done if speaks else 0)
        elapsed = time.perf_counter() - live.start
        return FinishDelta(reason, usage, Timings(0.0, live.first, live.first if speaks else None, elapsed))

    def conversation(self, request_id: str) -> tuple[bytes, int] | None:
        return None

    def statistics(self) -> Statistics:
        running = min(len(self._live), self.spec.max_sequences)
        return Statistics(running=running, waiting=len(self._live) - running, steps=self.num_steps)
