"""From a configuration to a listening server."""

from __future__ import annotations

import logging
from pathlib import Path

import uvicorn

from ..async_engine import AsyncEngine, EngineBackend
from ..engine_process import ProcessBackend
from ..engine_spec import EngineSpec
from ..engine_thread import ThreadBackend
from .app import create_app
from .config import ServerConfig

MAX_FRAME = 16 << 20


def backend_of(config: ServerConfig, spec: EngineSpec) -> EngineBackend:
    """Where the engine runs."""
    return ProcessBackend(spec) if config.engine == "process" else ThreadBackend(spec)


def server_of(config: ServerConfig, spec: EngineSpec) -> uvicorn.Server:
    """A server that is ready to run; SIGTERM and SIGINT drain it."""
    name = config.served_name or Path(getattr(spec, "path", "null")).name
    app = create_app(config, AsyncEngine(backend_of(config, spec), max_in_flight=config.max_in_flight), name)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_level=config.log_level,
        access_log=False,
        ws_max_size=MAX_FRAME,
        timeout_graceful_shutdown=int(config.drain_timeout) + 1,
        server_header=False,
    )
    return uvicorn.Server(settings)


def serve(config: ServerConfig, spec: EngineSpec) -> None:
    """Serve until told to stop."""
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server_of(config, spec).run()
