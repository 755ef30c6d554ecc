"""The loop around an engine that has a thread of its own: commands from an inbox, events to a deliver function."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from .deltas import FinishDelta, Timings, Usage
from .engine import Output
from .engine_messages import (
    Abort,
    Accepted,
    Command,
    Deliver,
    Emitted,
    EngineInfo,
    Event,
    Failed,
    Kept,
    Ready,
    Shutdown,
    Statistics,
    Submit,
    portable,
)
from .errors import AntiphonError, EngineError

logger = logging.getLogger(__name__)

STATISTICS_EVERY = 0.2
PREPARE_THREADS = 2


class ServableEngine(Protocol):
    """What a worker needs of an engine; ``prepare`` may be called in any thread, all else in the worker's."""

    info: EngineInfo

    def prepare(self, submit: Submit) -> Any:
        """Check a request; InputError or ConfigError if it cannot run."""

    def add(self, prepared: Any, submit: Submit) -> None:
        """Accept it; OverloadedError if there is no room."""

    def abort(self, request_id: str) -> bool:
        """End it."""

    @property
    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""

    def step(self) -> list[Output]:
        """One round of work."""

    def conversation(self, request_id: str) -> tuple[bytes, int] | None:
        """Encoded conversation and prompt length of a request that just finished and was to be kept; once."""

    def statistics(self) -> Statistics:
        """Gauges and counters now."""


class EngineWorker:
    """Runs an engine until :class:`Shutdown`. ``send`` may be called in any thread.

    ``load_seconds``: how long building the engine took, if whoever built it says so before :meth:`run`.
    """

    def __init__(self, engine: ServableEngine, deliver: Deliver, clock: Callable[[], float] = time.monotonic):
        self.engine, self.deliver, self.clock = engine, deliver, clock
        self.load_seconds = 0.0
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._preparing: set[str] = set()
        self._stopped = False
        self._next_statistics = 0.0
        self._step_began: float | None = None

    @property
    def seconds_in_step(self) -> float:
        """How long the engine has been in the step that it is in; 0 between steps. For a watchdog in another thread."""
        began = self._step_began
        return 0.0 if began is None else self.clock() - began

    def send(self, command: Command) -> None:
        """Hand over a command; returns at once."""
        self._inbox.put(command)

    def run(self) -> None:
        """Work until told to stop; what the engine raises here is its own failure and ends the worker."""
        self.deliver([Ready(self.engine.info, self.load_seconds)])
        with ThreadPoolExecutor(PREPARE_THREADS, "antiphon-prepare") as pool:
            while True:
                events = self._take_commands(pool)
                if self._stopped:
                    pool.shutdown(cancel_futures=True)
                    return
                if self.engine.has_work:
                    self._step_began = self.clock()
                    events += self._events(self.engine.step())
                    self._step_began = None
                events += self._statistics()
                if events:
                    self.deliver(events)

    def _take_commands(self, pool: ThreadPoolExecutor) -> list[Event]:
        """Everything in the inbox; waits for something if the engine has nothing to do."""
        events: list[Event] = []
        wait = not self.engine.has_work
        while True:
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return events
            wait = False
            events += self._handle(item, pool)
            if self._stopped:
                return events

    def _handle(self, item: Any, pool: ThreadPoolExecutor) -> list[Event]:
        if isinstance(item, Submit):
            self._preparing.add(item.request_id)
            pool.submit(self._prepare, item)
        elif isinstance(item, Abort):
            if item.request_id in self._preparing:
                self._preparing.discard(item.request_id)
                return [Emitted(item.request_id, FinishDelta("abort", Usage(0, 0, 0, 0), Timings()))]
            self.engine.abort(item.request_id)
        elif isinstance(item, Shutdown):
            self._stopped = True
        else:
            return self._add(*item)
        return []

    def _prepare(self, submit: Submit) -> None:
        """In a pool thread: the result goes through the inbox to the engine's thread."""
        try:
            prepared: Any = self.engine.prepare(submit)
        except AntiphonError as error:
            prepared = portable(error)
        except Exception as error:
            logger.exception("request %s could not be prepared", submit.request_id)
            prepared = EngineError(f"the request could not be prepared: {error}")
        self._inbox.put((submit, prepared))

    def _add(self, submit: Submit, prepared: Any) -> list[Event]:
        if submit.request_id not in self._preparing:
            return []
        self._preparing.discard(submit.request_id)
        if isinstance(prepared, AntiphonError):
            return [Failed(submit.request_id, prepared)]
        try:
            self.engine.add(prepared, submit)
        except AntiphonError as error:
            return [Failed(submit.request_id, portable(error))]
        return [Accepted(submit.request_id)]

    def _events(self, outputs: list[Output]) -> list[Event]:
        events: list[Event] = []
        for request_id, delta in outputs:
            if isinstance(delta, AntiphonError):
                events.append(Failed(request_id, portable(delta)))
                continue
            kept = self.engine.conversation(request_id) if isinstance(delta, FinishDelta) else None
            if kept is not None:
                events.append(Kept(request_id, *kept))
            events.append(Emitted(request_id, delta))
        return events

    def _statistics(self) -> list[Event]:
        """Now and then while there is work, and once when there is none left."""
        now = self.clock()
        if self.engine.has_work and now < self._next_statistics:
            return []
        self._next_statistics = now + STATISTICS_EVERY
        return [self.engine.statistics()]
