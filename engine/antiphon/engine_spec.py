"""What to load: descriptions of engines that can be sent to another process and built there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .conversation_codec import decode_conversation, encode_conversation
from .engine import Engine, Output
from .engine_config import EngineConfig
from .engine_messages import EngineInfo, Statistics, Submit
from .engine_worker import ServableEngine
from .live_request import LiveRequest, PreparedRequest, prepare
from .request import GenerationRequest, SamplingParams
from .runtime import Runtime, load_runtime


class EngineSpec(Protocol):
    """A picklable description of an engine."""

    def build(self) -> ServableEngine:
        """Load it; CheckpointError or ConfigError if that is impossible."""


@dataclass(frozen=True)
class ModelSpec:
    """A model folder and how to run it; fields as in ``load_runtime``. warm_up: run one request before taking others."""

    path: str
    device: str = "auto"
    dtype: str = "auto"
    speech_tokenizer: str | None = None
    load_detokenizer: bool = True
    draft: str | None = None
    compact: bool | None = None
    config: EngineConfig = field(default_factory=EngineConfig)
    warm_up: bool = True

    def build(self) -> ModelEngine:
        runtime = load_runtime(
            self.path,
            load_detokenizer=self.load_detokenizer,
            device=self.device,
            dtype=self.dtype,
            speech_tokenizer=self.speech_tokenizer,
            draft=self.draft,
            compact=self.compact,
        )
        engine = ModelEngine(runtime, self.config)
        if self.warm_up:
            engine.warm_up()
        return engine


class ModelEngine:
    """The real engine as a worker wants it."""

    def __init__(self, runtime: Runtime, config: EngineConfig | None = None):
        self.engine = Engine(runtime, config)
        llm = runtime.config.llm
        self.info = EngineInfo(str(runtime.config.path), runtime.can_speak, llm.max_positions, llm)
        self._kept: dict[str, LiveRequest] = {}

    def warm_up(self) -> None:
        """One short spoken answer, so that the first caller does not wait for lazy set-up."""
        message = {"role": "user", "message_type": "text", "content": "hello"}
        output_type = "both" if self.info.can_speak else "text"
        self.engine.add(GenerationRequest([message], output_type, SamplingParams(max_new_tokens=40, seed=0)))
        while self.engine.has_work:
            self.engine.step()

    def prepare(self, submit: Submit) -> PreparedRequest:
        request = submit.request
        if submit.history is not None:
            history = decode_conversation(submit.history, self.engine.runtime.device)
            request = dataclasses.replace(request, history=history)
        return prepare(request, self.engine.runtime)

    def add(self, prepared: PreparedRequest, submit: Submit) -> None:
        self.engine.add(prepared, submit.request_id)
        if submit.keep:
            self._kept[submit.request_id] = self.engine.live[submit.request_id]

    def abort(self, request_id: str) -> bool:
        return self.engine.abort(request_id)

    @property
    def has_work(self) -> bool:
        return self.engine.has_work

    def step(self) -> Sequence[Output]:
        outputs = self.engine.step()
        for output in outputs:
            if isinstance(output.delta, Exception):
                self._kept.pop(output.request_id, None)
        return outputs

    def conversation(self, request_id: str) -> tuple[bytes, int] | None:
        live = self._kept.pop(request_id, None)
        if live is None or live.prompt is None:
            return None
        return encode_conversation(self.engine.conversation(live)), len(live.prompt)

    def statistics(self) -> Statistics:
        scheduler = self.engine.scheduler
        cache = scheduler.memory.cache.statistics
        return Statistics(
            running=scheduler.num_running,
            waiting=max(0, len(self.engine.live) - scheduler.num_running),
            preemptions=scheduler.num_preemptions,
            prefix_queries=cache.tokens_looked_up,
            prefix_hits=cache.tokens_shared + cache.tokens_copied,
            pages=scheduler.memory.pools.counts(),
        )
