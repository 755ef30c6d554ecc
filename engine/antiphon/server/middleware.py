"""Around every request, as plain ASGI: an id, a log line, the key, the size of the body."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Iterable

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, envelope, response
from .ids import new_id

logger = logging.getLogger("antiphon.access")

PUBLIC = ("/health", "/ready", "/version", "/", "/favicon.ico")
"""Paths that need no key: what load balancers ask, and the console's page, which asks for a key itself."""
BODY_TIMEOUT = 30.0
"""Seconds between two pieces of a request's body."""
SUBPROTOCOL_KEY = "openai-insecure-api-key."
"""How a browser, which cannot set headers, sends its key over a WebSocket."""


class Gate:
    """Refuses requests without a key and bodies that are too large; logs, without any content."""

    def __init__(self, app: ASGIApp, keys: Iterable[str], max_bytes: int, service):
        self.app, self.max_bytes, self.service = app, max_bytes, service
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        call = _Call(scope, send, self.service)
        error = self._refusal(scope)
        try:
            if error is None:
                body = _LimitedBody(receive, self.max_bytes)
                await self.app(scope, body if scope["type"] == "http" else receive, call.send)
            elif scope["type"] == "http":
                await response(error)(scope, receive, call.send)
            else:
                await refuse_websocket(error, receive, send)
        finally:
            call.log()

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        needs_key = self.keys and scope.get("method") != "OPTIONS" and scope["path"] not in PUBLIC
        if needs_key and not self.known(_key_of(headers)):
            return ApiError(401, "no valid API key was sent", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            return ApiError(413, f"the body is larger than {self.max_bytes} bytes", code="request_too_large")
        return None

    def known(self, key: bytes) -> bool:
        """Compares with every key in constant time."""
        return sum(hmac.compare_digest(key, one) for one in self.keys) > 0


def _key_of(headers: dict[bytes, bytes]) -> bytes:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return key.strip()
    for protocol in headers.get(b"sec-websocket-protocol", b"").split(b","):
        if protocol.strip().startswith(SUBPROTOCOL_KEY.encode()):
            return protocol.strip()[len(SUBPROTOCOL_KEY) :]
    return b""


async def refuse_websocket(error: ApiError, receive: Receive, send: Send) -> None:
    """Answer a handshake with an HTTP error."""
    await receive()
    body = json.dumps(envelope(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


class _LimitedBody:
    """A receive function that counts, and that does not wait forever for the body."""

    def __init__(self, receive: Receive, limit: int):
        self.receive, self.limit, self.left = receive, limit, limit
        self.complete = False

    async def __call__(self) -> Message:
        if self.complete:
            return await self.receive()
        try:
            with anyio.fail_after(BODY_TIMEOUT):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_TIMEOUT:g} s") from None
        self.complete = not message.get("more_body", False)
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise HTTPException(413, f"the body is larger than {self.limit} bytes")  # the one kind that FastAPI lets pass
        return message


class _Call:
    """One request's id, status and log line."""

    def __init__(self, scope: Scope, send: Send, service):
        self.scope, self._send, self.service = scope, send, service
        self.id = new_id("req_")
        self.status: int | None = None
        self.start = time.perf_counter()
        scope.setdefault("state", {})["request_id"] = self.id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = message | {"headers": [*message["headers"], (b"x-request-id", self.id.encode())]}
        await self._send(message)

    def log(self) -> None:
        route = self.scope.get("route")
        path = getattr(route, "path", "unknown") if self.status != 404 else "unknown"
        if self.scope["type"] == "http":
            self.service.metrics.http.labels(path, str(self.status)).inc()
        if not logger.isEnabledFor(logging.INFO):
            return
        line = {
            "id": self.id,
            "method": self.scope.get("method", "WS"),
            "path": self.scope["path"][:200],
            "status": self.status,
            "seconds": round(time.perf_counter() - self.start, 4),
        }
        logger.info("%s", json.dumps(line))
