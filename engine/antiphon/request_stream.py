"""The deltas of one request as an async iterator, and the mailbox behind it."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

from .deltas import AudioDelta, Delta, FinishDelta, TextDelta
from .engine_messages import Accepted, Emitted, Event, Failed, Kept
from .errors import AntiphonError, EngineError


class Mailbox:
    """Events of one request on the event loop; what waits unread is joined, and bounded in bytes."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.deltas: deque[Delta] = deque()
        self.error: AntiphonError | None = None
        self.accepted = self.ended = False
        self.kept: Kept | None = None
        self._num_bytes = 0
        self._news = asyncio.Event()

    def put(self, event: Event) -> bool:
        """Take an event; False if the reader is so far behind that the request must end."""
        self._news.set()
        if isinstance(event, Emitted):
            self.accepted = True
            self._append(event.delta)
            self.ended = isinstance(event.delta, FinishDelta)
        elif isinstance(event, Failed):
            self.error, self.ended = event.error, True
        elif isinstance(event, Kept):
            self.kept = event
        elif isinstance(event, Accepted):
            self.accepted = True
        if self._num_bytes > self.max_bytes:
            self.error = EngineError(f"more than {self.max_bytes} bytes of the answer wait to be read; read faster")
            self.deltas.clear()
            self.ended = True
        return self._num_bytes <= self.max_bytes

    async def news(self) -> None:
        """Wait for the next event."""
        self._news.clear()
        await self._news.wait()

    def take(self) -> Delta | None:
        """The next delta, if there is one."""
        if not self.deltas:
            return None
        delta = self.deltas.popleft()
        self._num_bytes -= _size(delta)
        return delta

    def _append(self, delta: Delta) -> None:
        self._num_bytes += _size(delta)
        last = self.deltas[-1] if self.deltas else None
        if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
            self.deltas[-1] = TextDelta(last.text + delta.text)
        elif isinstance(delta, AudioDelta) and isinstance(last, AudioDelta):
            self.deltas[-1] = AudioDelta(np.concatenate((last.pcm, delta.pcm)), delta.sample_rate)
        else:
            self.deltas.append(delta)


class RequestStream:
    """``async for delta in stream``: text, sound, and a ``FinishDelta`` at last.

    Leaving the iteration for good ends the request: ``aclose()``, cancelling the task that waits, or dropping the object.
    A reader that is slow gets larger deltas.

    Attributes:
        request_id: the engine's name for it.
    """

    def __init__(
        self, request_id: str, mailbox: Mailbox, abort: Callable[[str], None], cancel: Callable[[str], None]
    ):
        self.request_id = request_id
        self._mailbox, self._cancel = mailbox, cancel
        self._finalizer = weakref.finalize(self, abort, request_id)
        self._finalizer.atexit = False

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Delta:
        """The next delta.

        Raises:
            StopAsyncIteration: after the ``FinishDelta``. InputError, ConfigError, OverloadedError, EngineError,
            EngineDeadError: as the engine said.
        """
        mailbox = self._mailbox
        while True:
            delta = mailbox.take()
            if delta is not None:
                return delta
            if mailbox.ended:
                self._finalizer.detach()
                if mailbox.error is not None:
                    raise mailbox.error
                raise StopAsyncIteration
            try:
                await mailbox.news()
            except asyncio.CancelledError:
                self.abort()
                raise

    async def accepted(self) -> None:
        """Wait until the request is checked and queued; raises what :meth:`__anext__` would if it is not."""
        mailbox = self._mailbox
        while not mailbox.accepted and not mailbox.ended:
            try:
                await mailbox.news()
            except asyncio.CancelledError:
                self.abort()
                raise
        if not mailbox.accepted and mailbox.error is not None:
            self._finalizer.detach()
            raise mailbox.error

    @property
    def conversation(self) -> Kept | None:
        """The conversation after the answer, once it is finished, if it was to be kept."""
        return self._mailbox.kept

    def abort(self) -> None:
        """End the request at once; a no-op when it has ended."""
        self._finalizer()

    def cancel(self) -> None:
        """Stop generating, but read on: what was generated, a ``FinishDelta`` with reason ``abort``, the conversation."""
        if not self._mailbox.ended:
            self._cancel(self.request_id)

    def fail(self, error: AntiphonError) -> None:
        """End the request with an error of the caller's own, which the reader gets next."""
        if not self._mailbox.ended:
            self._mailbox.deltas.clear()
            self._mailbox.put(Failed(self.request_id, error))
            self.abort()

    async def aclose(self) -> None:
        """As :meth:`abort`."""
        self.abort()


def _size(delta: Delta) -> int:
    if isinstance(delta, AudioDelta):
        return delta.pcm.nbytes
    return len(delta.text) if isinstance(delta, TextDelta) else 0
