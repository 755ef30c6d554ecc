"""Server-sent events as a response, in plain ASGI: one task beside the request's own, and no write more than needed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """``pieces``: events, whole ones, the last piece ending with ``DONE``. The generator is closed when the client goes."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]):
        self.pieces, self.background, self.status_code = pieces, None, 200
        self.media_type = "text/event-stream"
        self.init_headers(HEADERS)
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.current_task()
        watch = asyncio.ensure_future(self._watch(receive, work))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            last = False
            async for piece in self.pieces:
                last = piece.endswith(DONE)
                await send({"type": "http.response.body", "body": piece, "more_body": not last})
            if not last:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not self._gone:
                raise
            if sys.version_info >= (3, 11):
                work.uncancel()
        finally:
            watch.cancel()
            await self.pieces.aclose()

    async def _watch(self, receive: Receive, work: asyncio.Task) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        work.cancel()
