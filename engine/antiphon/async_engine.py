"""The asyncio face of an engine that runs elsewhere: in a thread (``ThreadBackend``) or a process (``ProcessBackend``).

    async with AsyncEngine(ThreadBackend(ModelSpec("path/to/model"))) as engine:
        async for delta in engine.generate(GenerationRequest(messages, "both")):
            ...

No step of a model and no decoding of a recording runs on the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Literal, Protocol

from .engine_messages import (
    Abort,
    Command,
    Deliver,
    Died,
    Emitted,
    EngineInfo,
    Event,
    Failed,
    Kept,
    Ready,
    Statistics,
    Submit,
)
from .errors import EngineDeadError, OverloadedError
from .request import GenerationRequest
from .request_stream import Mailbox, RequestStream

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

State = Literal["new", "starting", "ready", "restarting", "failed", "closed"]


class EngineBackend(Protocol):
    """Where an engine runs."""

    def start(self, deliver: Deliver) -> None:
        """Begin to load; ``deliver`` may be called in any thread, in order."""

    def send(self, command: Command) -> None:
        """Hand over a command without waiting."""

    def close(self, timeout: float = 10.0) -> None:
        """End it; blocks."""


class AsyncEngine:
    """Many requests, one event loop.

    Args:
        backend: where the engine runs.
        max_in_flight: requests that may be under way before :meth:`generate` refuses more.
        max_buffered_bytes: unread deltas of one request; a reader further behind loses its request.

    Attributes:
        load_seconds: how long the engine that runs now took to load its model, without the start of its process.
    """

    def __init__(self, backend: EngineBackend, *, max_in_flight: int = 1024, max_buffered_bytes: int = 64 << 20):
        self.backend = backend
        self.max_in_flight = max_in_flight
        self.max_buffered_bytes = max_buffered_bytes
        self.state: State = "new"
        self.statistics = Statistics()
        self.num_deaths = 0
        self.load_seconds: float | None = None
        self._info: EngineInfo | None = None
        self._mailboxes: dict[str, Mailbox] = {}
        self._ids = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._reason = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    # -- life ----------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Begin to load without waiting."""
        assert self.state == "new", f"the engine is {self.state}"
        self._loop, self.state = asyncio.get_running_loop(), "starting"
        self.backend.start(self._deliver)

    async def start(self, timeout: float | None = None) -> None:
        """Load, and wait until requests can run.

        Raises:
            EngineDeadError: the model cannot be loaded; says why. TimeoutError.
        """
        self.launch()
        await self.wait_ready(timeout)

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until requests can run; errors as :meth:`start`. With ``timeout`` None, as long as it takes."""

        async def ready() -> None:
            while self.state not in ("ready", "failed", "closed"):
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(ready(), timeout)
        if self.state != "ready":
            raise EngineDeadError(f"the engine is {self.state}: {self._reason}")

    async def close(self) -> None:
        """End the engine; requests in flight get an EngineDeadError."""
        if self.state in ("new", "closed"):
            return
        self._set_state("closed", "it was closed")
        self._fail_all(EngineDeadError("the engine was closed"))
        await asyncio.to_thread(self.backend.close)

    @property
    def info(self) -> EngineInfo:
        """The loaded model; kept while the engine restarts."""
        if self._info is None:
            raise EngineDeadError("the engine is not loaded yet")
        return self._info

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._mailboxes)

    # -- requests ------------------------------------------------------------------------------------------------

    def generate(
        self,
        request: GenerationRequest,
        *,
        history: bytes | None = None,
        keep: bool = False,
        request_id: str | None = None,
    ) -> RequestStream:
        """Run a request; call it on the event loop.

        Args:
            history: an encoded conversation that comes before the request's messages.
            keep: make the conversation with its answer available as ``stream.conversation``.

        Raises:
            OverloadedError: too many are under way. EngineDeadError: the engine is not there, or is being restarted.
            All else is raised by the stream.
        """
        self.check_room()
        request_id = f"request-{next(self._ids)}" if request_id is None else request_id
        if request_id in self._mailboxes:
            raise ValueError(f"request id {request_id!r} is in use")
        mailbox = self._mailboxes[request_id] = Mailbox(self.max_buffered_bytes)
        self.backend.send(Submit(request_id, request, history, keep))
        return RequestStream(request_id, mailbox, self._abort, self._cancel)

    def check_room(self) -> None:
        """Raise what :meth:`generate` would raise now for want of an engine or of room: before costly preparation."""
        if self.state != "ready":
            raise EngineDeadError(f"the engine is {self.state}{self._reason and ': '}{self._reason}; try again later")
        if len(self._mailboxes) >= self.max_in_flight:
            raise OverloadedError(f"{len(self._mailboxes)} requests are under way, the limit; try again later")

    def _abort(self, request_id: str) -> None:
        if self._mailboxes.pop(request_id, None) is not None:
            self.backend.send(Abort(request_id))

    def _cancel(self, request_id: str) -> None:
        if request_id in self._mailboxes:
            self.backend.send(Abort(request_id))

    # -- events --------------------------------------------------------------------------------------------------

    def _deliver(self, events: list[Event]) -> None:
        """In the backend's thread."""
        try:
            self._loop.call_soon_threadsafe(self._receive, events)
        except RuntimeError:
            logger.debug("%d events came after the event loop was closed", len(events))

    def _receive(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Statistics):
                self.statistics = event
            elif isinstance(event, Ready):
                self._info, self.load_seconds = event.info, event.load_seconds
                self._set_state("ready", "")
            elif isinstance(event, Died):
                self._died(event)
            else:
                self._to_request(event)

    def _to_request(self, event: Emitted | Kept | Failed) -> None:
        mailbox = self._mailboxes.get(event.request_id)
        if mailbox is None:
            return
        if not mailbox.put(event):
            self._abort(event.request_id)
        elif mailbox.ended:
            del self._mailboxes[event.request_id]

    def _died(self, event: Died) -> None:
        if self.state == "closed":
            return
        self.num_deaths += 1
        self.statistics = Statistics()
        self._set_state("failed" if event.final else "restarting", event.reason)
        self._fail_all(EngineDeadError(f"{event.reason}; the request was lost, send it again"))

    def _fail_all(self, error: EngineDeadError) -> None:
        mailboxes, self._mailboxes = self._mailboxes, {}
        for request_id, mailbox in mailboxes.items():
            mailbox.put(Failed(request_id, error))

    def _set_state(self, state: State, reason: str) -> None:
        if self.state != "closed":
            self.state, self._reason = state, reason
            self._changed.set()
