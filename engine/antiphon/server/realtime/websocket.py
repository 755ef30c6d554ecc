"""``WS /v1/realtime``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from ..errors import ApiError, envelope
from ..service import Service
from .beta import to_beta
from .session import Session

router = APIRouter()

SEND_TIMEOUT = 30.0
"""A client that does not read for so long has gone."""
GOING_AWAY, TRY_LATER = 1001, 1013


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket, model: str | None = None) -> None:
    """One session."""
    service: Service = websocket.app.state.service
    refusal = refuse(service, model)
    protocols = [one.strip() for one in websocket.headers.get("sec-websocket-protocol", "").split(",")]
    await websocket.accept("realtime" if "realtime" in protocols else None)
    if refusal is not None:
        await websocket.send_text(json.dumps({"type": "error", "event_id": "event_0"} | envelope(refusal)))
        await websocket.close(TRY_LATER if refusal.status in (429, 503) else 1008, refusal.message[:100])
        return
    beta = service.config.realtime_beta and "realtime=v1" in websocket.headers.get("openai-beta", "")
    lock = asyncio.Lock()

    async def deliver(event: dict[str, Any]) -> None:
        for one in to_beta(event) if beta else (event,):
            async with lock:
                await asyncio.wait_for(websocket.send_text(json.dumps(one, ensure_ascii=False)), SEND_TIMEOUT)

    await hold(service, websocket, Session(service, deliver))


def refuse(service: Service, model: str | None) -> ApiError | None:
    """Why no session can begin now."""
    if model is not None and model != service.name:
        return ApiError(404, f"the model {model!r} is not served here; use {service.name!r}", param="model", code="model_not_found")
    if service.draining:
        return ApiError(503, "the server is shutting down", code="shutting_down")
    if service.num_sessions >= service.config.max_sessions:
        return ApiError(429, f"{service.num_sessions} sessions are open, the limit", code="session_limit_exceeded")
    return None


async def hold(service: Service, websocket: WebSocket, session: Session) -> None:
    """The session's life, bounded by its limits."""
    service.session_began()
    watch = asyncio.create_task(_watch(service, websocket, session))
    try:
        await session.start()
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await session.receive(message["text"] if message.get("text") is not None else message.get("bytes", b""))
    except (WebSocketDisconnect, RuntimeError, asyncio.TimeoutError):
        return  # the client has gone, or does not read
    finally:
        watch.cancel()
        await session.close()
        service.session_ended()


async def _watch(service: Service, websocket: WebSocket, session: Session) -> None:
    """Close a session that is too old or too quiet."""
    config, end = service.config, time.monotonic() + service.config.max_session_seconds
    while time.monotonic() < end and time.monotonic() - session.last_event < config.idle_timeout:
        await asyncio.sleep(min(1.0, config.idle_timeout / 4))
    expired = time.monotonic() >= end
    reason = "the session has reached its time" if expired else "nothing was heard for too long"
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await session.send_error(ApiError(400, reason, code="session_expired"))
        await websocket.close(GOING_AWAY, reason)
