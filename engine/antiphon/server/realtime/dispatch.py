"""What a client sends, sorted to who handles it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ...errors import AntiphonError
from ..errors import as_api_error, bad_request, from_validation, utf8
from . import item_events
from .schema import (
    EVENTS,
    Append,
    Clear,
    Commit,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    OutputClear,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
)

if TYPE_CHECKING:
    from .session import Session

HANDLERS: dict[type, Callable[[Session, Any], Awaitable[None]]] = {
    SessionUpdate: lambda session, event: session.update(event),
    Append: lambda session, event: session.listener.append(event),
    Commit: lambda session, event: session.listener.commit(),
    Clear: lambda session, event: session.listener.clear(),
    ItemCreate: item_events.create,
    ItemDelete: item_events.delete,
    ItemRetrieve: item_events.retrieve,
    ItemTruncate: item_events.truncate,
    ResponseCreate: lambda session, event: session.create_response(event),
    ResponseCancel: lambda session, event: session.cancel_response(event),
    OutputClear: lambda session, event: session.clear_output(),
}


async def receive(session: Session, text: str | bytes) -> None:
    """One message of the client; whatever is wrong with it becomes an error event."""
    cause = None
    try:
        if isinstance(text, bytes):
            raise bad_request("binary frames are not understood; send events as JSON text", code="invalid_event")
        raw = _parsed(text)
        cause = utf8(raw["event_id"]) if isinstance(raw.get("event_id"), str) else None
        event = EVENTS.validate_python(raw)
        await HANDLERS[type(event)](session, event)
    except ValidationError as error:
        await session.send_error(from_validation(_in_event(error)), cause)
    except AntiphonError as error:
        await session.send_error(as_api_error(error), cause)


def _parsed(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the event is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(raw, dict):
        raise bad_request("an event is a JSON object", code="invalid_event")
    return raw


def _in_event(error: ValidationError) -> list[dict[str, Any]]:
    """Errors without the tag of the event's kind in front."""
    found = error.errors(include_url=False)
    return [one | {"loc": one["loc"][1:] if len(one["loc"]) > 1 else ("type",)} for one in found]
