"""``POST /v1/realtime/calls``: an SDP offer for an SDP answer."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from ..errors import ApiError, bad_request, from_validation
from ..service import Service
from .schema import SessionChange
from .websocket import refuse

router = APIRouter()

MAX_SDP = 1 << 17


@router.post("/v1/realtime/calls", response_model=None, status_code=201)
async def create_call(request: Request) -> Response:
    """Begin a call. The body is the offer (``application/sdp``), or a form with ``sdp`` and ``session``."""
    service: Service = request.app.state.service
    refusal = refuse(service, request.query_params.get("model"))
    if refusal is not None:
        raise refusal
    try:
        from .webrtc import Call
    except ImportError as error:
        raise ApiError(501, "WebRTC needs aiortc: pip install 'antiphon[webrtc]'", code="unsupported") from error
    offer, settings = await _offer(request)
    call = Call(service)
    service.session_began()
    try:
        answer = await call.answer(offer, settings)
    except BaseException:
        await call.close()
        service.session_ended()
        raise
    service.keep_call(call)
    headers = {"Location": f"/v1/realtime/calls/{call.id}"}
    return Response(answer, 201, headers, media_type="application/sdp")


@router.post("/v1/realtime/calls/{call_id}/hangup", response_model=None)
async def hang_up(call_id: str, request: Request) -> Response:
    """End a call."""
    call = request.app.state.service.calls.get(call_id)
    if call is None:
        raise ApiError(404, f"there is no call {call_id!r}", param="call_id", code="call_not_found")
    await call.close()
    return Response(status_code=200)


async def _offer(request: Request) -> tuple[str, dict[str, Any] | None]:
    """The offer, and what the session is to be set to."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        form = await request.form()
        sdp, session = await _text(form.get("sdp")), await _text(form.get("session"))
    else:
        sdp, session = (await request.body()).decode("utf-8", "replace"), None
    if not sdp or len(sdp) > MAX_SDP or not sdp.startswith("v=0"):
        raise bad_request("expected an SDP offer", "sdp", "invalid_offer")
    if session is None:
        return sdp, None
    try:
        settings = json.loads(session)
        change = SessionChange.model_validate(settings)
    except ValidationError as error:
        raise from_validation([one | {"loc": ("session", *one["loc"])} for one in error.errors()]) from error
    except (ValueError, RecursionError) as error:
        raise bad_request(f"not valid JSON: {error}", "session", "invalid_json") from error
    if change.model is not None and change.model != request.app.state.service.name:
        raise ApiError(404, f"the model {change.model!r} is not served here", param="session.model", code="model_not_found")
    return sdp, settings


async def _text(value: Any) -> str | None:
    """A form field, sent as text or as a file."""
    if value is None or isinstance(value, str):
        return value
    return (await value.read()).decode("utf-8", "replace")
