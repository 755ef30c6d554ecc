"""The application: routes, gate, and the engine's life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from .. import __version__
from ..async_engine import AsyncEngine
from ..store import ConversationStore, open_store
from . import chat, console, errors, operations, transcription
from .config import ServerConfig
from .middleware import Gate
from .realtime import calls, websocket
from .service import Service

logger = logging.getLogger(__name__)

PURGE_EVERY = 300.0


def create_app(config: ServerConfig, engine: AsyncEngine, name: str, store: ConversationStore | None = None) -> FastAPI:
    """An ASGI application over ``engine``, which it starts and closes.

    Args:
        name: the model's name in the API.
        store: default: the one that ``config`` names.
    """
    service = Service(config, engine, open_store(config.store) if store is None else store, name)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.launch()
        purging = asyncio.create_task(_purge(service))
        yield
        await drain(service)
        for call in list(service.calls.values()):
            await call.close()
        purging.cancel()
        await engine.close()
        await service.in_thread(service.store.close)

    app = FastAPI(title="Antiphon", version=__version__, lifespan=lifespan, summary="Kimi-Audio behind OpenAI's interface")
    app.state.service = service
    errors.install(app)
    for part in (chat, transcription, operations, websocket, calls, console):
        app.include_router(part.router)
    app.add_middleware(Gate, keys=config.keys(), max_bytes=config.max_upload_bytes, service=service)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


async def drain(service: Service) -> None:
    """Take nothing new, and let what is under way end, up to the configured time."""
    service.draining = True
    end = time.monotonic() + service.config.drain_timeout
    while service.engine.num_in_flight and time.monotonic() < end:
        await asyncio.sleep(0.05)
    if service.engine.num_in_flight:
        logger.warning("%d requests did not end in time", service.engine.num_in_flight)


async def _purge(service: Service) -> None:
    """Free the store of what has expired, now and then."""
    while True:
        try:
            await service.in_thread(service.store.purge)
        except Exception:
            logger.exception("expired conversations could not be removed; trying again later")
        await asyncio.sleep(PURGE_EVERY)
