"""What every endpoint needs: configuration, engine, store, metrics; and one answer, measured."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from ..async_engine import AsyncEngine
from ..config import SAMPLE_RATE_OUT
from ..deltas import AudioDelta, Delta, FinishDelta
from ..request import GenerationRequest, SamplingParams, StreamSampling
from ..request_stream import RequestStream
from ..speech import SpeechOptions
from ..store import ConversationStore
from .config import ServerConfig
from .errors import ApiError, as_api_error
from .metrics import Metrics
from .playback import PlaybackClock

logger = logging.getLogger(__name__)


class Service:
    """One server's state. Everything runs on its event loop; what blocks goes through :meth:`in_thread`."""

    def __init__(self, config: ServerConfig, engine: AsyncEngine, store: ConversationStore, name: str):
        self.config, self.engine, self.store, self.name = config, engine, store, name
        self.metrics = Metrics(engine)
        self.draining = False
        self.num_sessions = 0
        self.calls: dict[str, Any] = {}
        self._watchers: set[asyncio.Task] = set()
        self.started = time.time()
        self.speech = SpeechOptions(
            first_chunk=config.first_chunk,
            chunk=config.chunk,
            chunk_growth=config.chunk_growth,
            look_ahead=config.look_ahead,
            ode_steps=config.ode_steps,
            overlap=config.overlap,
            eager=True,
        )

    def session_began(self) -> None:
        """A realtime session is open."""
        self.num_sessions += 1
        self.metrics.sessions.set(self.num_sessions)

    def session_ended(self) -> None:
        """It is closed."""
        self.num_sessions -= 1
        self.metrics.sessions.set(self.num_sessions)

    def keep_call(self, call: Any) -> None:
        """Hold a WebRTC call, a session that has begun, until it ends."""

        async def watch() -> None:
            await call.ended.wait()
            del self.calls[call.id]
            self.session_ended()

        self.calls[call.id] = call
        task = asyncio.create_task(watch())
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def in_thread(self, function, *arguments) -> Any:
        """Run something that blocks."""
        return await asyncio.to_thread(function, *arguments)

    def check_model(self, model: str) -> None:
        """A 404 for a model that is not served."""
        if model != self.name:
            raise ApiError(404, f"the model {model!r} is not served here; use {self.name!r}", param="model", code="model_not_found")

    def check_room(self) -> None:
        """Raise what :meth:`generate` would raise now: a request that will be refused must cost nothing more."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        self.engine.check_room()

    def generate(self, request: GenerationRequest, **how: Any) -> RequestStream:
        """As ``AsyncEngine.generate``, refused while the server drains."""
        self.check_room()
        return self.engine.generate(request, **how)

    async def answer(self, stream: RequestStream) -> AsyncIterator[Delta]:
        """The deltas of ``stream``, counted, and ended by ``request_timeout`` at the latest.

        Raises:
            ApiError: whatever went wrong.
        """
        clock, limit = PlaybackClock(), self.config.request_timeout
        late = ApiError(504, f"the answer took longer than {limit:g} s", code="timeout")
        timer = asyncio.get_running_loop().call_later(limit, stream.fail, late)
        try:
            async for delta in stream:
                if isinstance(delta, AudioDelta):
                    clock.add(time.monotonic(), len(delta.pcm) / SAMPLE_RATE_OUT)
                elif isinstance(delta, FinishDelta):
                    self.metrics.answered(delta, clock)
                yield delta
        except Exception as error:
            answer = as_api_error(error)
            self.metrics.errors.labels(str(answer.status)).inc()
            if answer.status >= 500:
                logger.warning("request %s failed: %s", stream.request_id, error)
            raise answer from error
        finally:
            timer.cancel()
            stream.abort()
            if clock.num_chunks:
                self.metrics.heard(clock)


def sampling_of(options: Any, *, seed: int | None, max_new_tokens: int | None, temperature: float | None) -> SamplingParams:
    """The official per-stream arguments that ``options`` has; ``temperature`` holds for both streams without their own."""
    streams = []
    for stream, defaults in (("text", SamplingParams().text), ("audio", SamplingParams().audio)):
        values = {field.name: getattr(options, f"{stream}_{field.name}") for field in dataclasses.fields(StreamSampling)}
        if values["temperature"] is None:
            values["temperature"] = temperature
        streams.append(dataclasses.replace(defaults, **{name: v for name, v in values.items() if v is not None}))
    return SamplingParams(
        *streams,
        max_new_tokens=-1 if max_new_tokens is None else max_new_tokens,
        seed=None if seed is None else seed & (2**63 - 1),
    )
