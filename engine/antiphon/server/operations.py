"""What runs here, how it is, and its metrics."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .. import __version__
from .errors import ApiError
from .service import Service

router = APIRouter()


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": int(service.started), "owned_by": "antiphon"}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [_model(request.app.state.service)]}


@router.get("/v1/models/{model}")
async def model(model: str, request: Request) -> dict[str, Any]:
    """The one model by name."""
    service: Service = request.app.state.service
    service.check_model(model)
    return _model(service)


@router.get("/health")
async def health() -> dict[str, str]:
    """The server answers; says nothing of the engine."""
    return {"status": "ok"}


@router.get("/ready", response_model=None)
async def ready(request: Request) -> dict[str, Any]:
    """Requests can run; 503 while the engine loads, restarts, or the server drains."""
    service: Service = request.app.state.service
    if service.draining or service.engine.state != "ready":
        reason = "the server is shutting down" if service.draining else f"the engine is {service.engine.state}"
        raise ApiError(503, reason, code="not_ready")
    return {"status": "ready", "model": service.name, "speaks": service.engine.info.can_speak}


@router.get("/version")
async def version() -> dict[str, str]:
    """This package's version."""
    return {"version": __version__}


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Prometheus' exposition format."""
    return Response(request.app.state.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/status")
async def status(request: Request) -> JSONResponse:
    """A few live numbers for the console."""
    service: Service = request.app.state.service
    now = service.engine.statistics
    pages = now.pages.get("trunk", {"used": 0, "total": 1})
    return JSONResponse(
        {
            "state": service.engine.state,
            "running": now.running,
            "waiting": now.waiting,
            "sessions": service.num_sessions,
            "kv_used": pages["used"] / max(1, pages["total"]),
            "viability": service.metrics.viability(),
            "uptime": time.time() - service.started,
        }
    )
