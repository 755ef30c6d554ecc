"""A realtime session, whatever carries its events: a WebSocket, or a data channel beside WebRTC audio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from starlette.websockets import WebSocketDisconnect

from ..errors import ApiError, bad_request, envelope
from ..ids import new_id
from ..service import Service
from . import dispatch
from .items import ItemList
from .listening import Listener
from .response import Response
from .schema import ResponseCancel, ResponseCreate, SessionUpdate
from .settings import Settings

logger = logging.getLogger(__name__)


class Speaker(Protocol):
    """A transport's own way to play sound (WebRTC's track)."""

    async def play(self, response: Response, pcm: np.ndarray) -> None:
        """Queue float32 [n] at 24 kHz."""

    async def clear(self) -> None:
        """Drop what has not been played."""


class Session:
    """``receive`` takes what the client sends, ``deliver`` (given) sends what the server says."""

    def __init__(self, service: Service, deliver: Callable[[dict[str, Any]], Awaitable[None]]):
        self.service, self._deliver = service, deliver
        self.id = new_id("sess_", 10)
        self.conversation_id = new_id("conv_", 10)
        self.salt = b""
        self.settings = Settings(service.name)
        self.items = ItemList()
        self.speaker: Speaker | None = None
        self.response: Response | None = None
        self.listener = Listener(self)
        self.last_event = time.monotonic()
        self._answer_next = False
        self._tasks: set[asyncio.Task] = set()
        self._expires_at = int(time.time() + service.config.max_session_seconds)

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Greet."""
        await self.listener.renew_detector()
        await self.send("session.created", session=self.settings.public(self.id, self._expires_at))

    async def close(self) -> None:
        """Take everything of this session out of the engine."""
        tasks = [task for task in (*self._tasks, self.response and self.response.task) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def receive(self, text: str | bytes) -> None:
        """One message of the client; whatever is wrong with it becomes an error event."""
        self.last_event = time.monotonic()
        await dispatch.receive(self, text)

    async def hear(self, data: bytes) -> None:
        """Sound in the session's input format."""
        await self.listener.hear(data)

    async def send(self, kind: str, **fields: Any) -> None:
        """One event to the client."""
        await self._deliver({"type": kind, "event_id": new_id("event_", 10)} | fields)

    async def send_error(self, error: ApiError, cause: str | None = None) -> None:
        """An error event; ``cause``: the client's event."""
        await self.send("error", error=envelope(error)["error"] | {"event_id": cause})

    def spawn(self, work: Awaitable[None]) -> None:
        """Do something on the side, for as long as the session lasts."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- settings ------------------------------------------------------------------------------------------------

    async def update(self, event: SessionUpdate) -> None:
        """``session.update``."""
        change = event.session
        if change.model is not None and change.model != self.service.name:
            raise bad_request("the model of a session cannot change", "session.model")
        if change.audio and change.audio.output and change.audio.output.format and self.response is not None:
            raise bad_request("the format cannot change during a response", "session.audio.output.format")
        before = (self.settings.vad, self.settings.input_format)
        self.settings.change(change)
        if self.settings.input_format != before[1]:
            self.listener.buffer.set_format(self.settings.input_format)
        if (self.settings.vad, self.settings.input_format) != before:
            await self.listener.renew_detector()
        await self.send("session.updated", session=self.settings.public(self.id, self._expires_at))

    # -- responses -----------------------------------------------------------------------------------------------

    async def create_response(self, event: ResponseCreate) -> None:
        """``response.create``."""
        if self.response is not None:
            code = "conversation_already_has_active_response"
            raise bad_request(f"response {self.response.id} is still active", code=code)
        self._respond(Response(self, event.response))

    def answer_turn(self) -> None:
        """The user has spoken: answer now, or as soon as the response under way has ended."""
        if self.response is None:
            self._respond(Response(self))
        else:
            self._answer_next = True

    def _respond(self, response: Response) -> None:
        self.response = response
        response.task = asyncio.create_task(response.run())
        response.task.add_done_callback(_report)

    def response_ended(self, response: Response) -> None:
        """A response is about to be done; the next may begin."""
        self.response = None
        if self._answer_next:
            self._answer_next = False
            self._respond(Response(self))

    async def interrupt(self, reason: str) -> None:
        """Stop what is being said."""
        if self.response is not None:
            self.response.cancel(reason)
        if self.speaker is not None:
            await self.speaker.clear()

    async def cancel_response(self, event: ResponseCancel) -> None:
        """``response.cancel``."""
        active = self.response
        if active is None or event.response_id not in (None, active.id):
            raise bad_request("no such response is active", "response_id", "response_cancel_not_active")
        active.cancel("client_cancelled")

    async def clear_output(self) -> None:
        """``output_audio_buffer.clear``."""
        if self.speaker is None:
            raise bad_request("output_audio_buffer.clear is for WebRTC", code="invalid_event")
        await self.interrupt("client_cancelled")


def _report(task: asyncio.Task) -> None:
    """A response ends its own errors; what is left is a client that has gone, or our mistake."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, (WebSocketDisconnect, OSError, asyncio.TimeoutError)):
        logger.info("a response lost its listener: %r", error)
    elif error is not None:
        logger.warning("a response ended early: %r", error)
