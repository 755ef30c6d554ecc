"""A realtime session, whatever carries its events: a WebSocket, or a data channel beside WebRTC audio."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from pydantic import ValidationError

from ...audio import load_audio
from ...deltas import FinishDelta, TextDelta
from ...errors import AntiphonError
from ...request import GenerationRequest
from ..errors import ApiError, as_api_error, bad_request, envelope, from_validation, utf8
from ..media import from_base64
from ..service import Service
from ..transcription import INSTRUCTION
from . import truncating
from .audio import InputBuffer, decode
from .items import Item, ItemList
from .response import Response
from .schema import (
    EVENTS,
    Append,
    Clear,
    Commit,
    ItemCreate,
    ItemDelete,
    ItemParam,
    ItemRetrieve,
    ItemTruncate,
    OutputClear,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
)
from .settings import Settings
from .vad import Turn, TurnDetector

logger = logging.getLogger(__name__)

SHORTEST_COMMIT_MS = 100


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
        self.id = f"sess_{secrets.token_hex(10)}"
        self.conversation_id = f"conv_{secrets.token_hex(10)}"
        self.salt = b""
        self.settings = Settings(service.name)
        self.items = ItemList()
        self.speaker: Speaker | None = None
        self.response: Response | None = None
        self.buffer = InputBuffer(self.settings.input_format, service.config.max_audio_seconds)
        self.detector: TurnDetector | None = None
        self.last_event = time.monotonic()
        self._turn_item = ""
        self._answer_next = False
        self._tasks: set[asyncio.Task] = set()
        self._expires_at = int(time.time() + service.config.max_session_seconds)

    # -- out -----------------------------------------------------------------------------------------------------

    async def send(self, kind: str, **fields: Any) -> None:
        """One event to the client."""
        await self._deliver({"type": kind, "event_id": f"event_{secrets.token_hex(10)}"} | fields)

    async def send_error(self, error: ApiError, cause: str | None = None) -> None:
        """An error event; ``cause``: the client's event."""
        await self.send("error", error=envelope(error)["error"] | {"event_id": cause})

    async def start(self) -> None:
        """Greet."""
        await self._new_detector()
        await self.send("session.created", session=self.settings.public(self.id, self._expires_at))

    async def close(self) -> None:
        """Take everything of this session out of the engine."""
        tasks = [task for task in (*self._tasks, self.response and self.response.task) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- in ------------------------------------------------------------------------------------------------------

    async def receive(self, text: str | bytes) -> None:
        """One message of the client; whatever is wrong with it becomes an error event."""
        self.last_event = time.monotonic()
        cause = None
        try:
            if isinstance(text, bytes):
                raise bad_request("binary frames are not understood; send events as JSON text", code="invalid_event")
            raw = _parsed(text)
            cause = utf8(raw["event_id"]) if isinstance(raw.get("event_id"), str) else None
            event = EVENTS.validate_python(raw)
            await HANDLERS[type(event)](self, event)
        except ValidationError as error:
            await self.send_error(from_validation(_in_event(error)), cause)
        except AntiphonError as error:
            await self.send_error(as_api_error(error), cause)

    async def _update(self, event: SessionUpdate) -> None:
        change = event.session
        if change.model is not None and change.model != self.service.name:
            raise bad_request("the model of a session cannot change", "session.model")
        if change.audio and change.audio.output and change.audio.output.format and self.response is not None:
            raise bad_request("the format cannot change during a response", "session.audio.output.format")
        before = (self.settings.vad, self.settings.input_format)
        self.settings.change(change)
        if self.settings.input_format != before[1]:
            self.buffer.set_format(self.settings.input_format)
        if (self.settings.vad, self.settings.input_format) != before:
            await self._new_detector()
        await self.send("session.updated", session=self.settings.public(self.id, self._expires_at))

    async def _new_detector(self) -> None:
        options = self.settings.vad
        self.detector = None
        if options is not None:
            self.detector = await self.service.in_thread(TurnDetector, options, self.buffer.received_ms)

    async def _append(self, event: Append) -> None:
        await self.hear(from_base64(event.audio, "audio"))

    async def hear(self, data: bytes) -> None:
        """Sound in the session's input format."""
        heard = self.buffer.append(data)
        if heard is None:
            self.buffer.clear()
            await self._new_detector()
            limit = self.service.config.max_audio_seconds
            raise ApiError(400, f"more than {limit:g} s were not committed; all of it was dropped", param="audio", code="input_audio_buffer_overflow")
        if self.detector is None or not len(heard):
            return
        for turn in await self.service.in_thread(self.detector.push, heard):
            await (self._turn_began(turn) if turn.end_ms is None else self._turn_ended(turn))
        if self.detector is not None and not self.detector.speaking:
            self.buffer.drop_before(self.detector.needed_from_ms)

    async def _turn_began(self, turn: Turn) -> None:
        item = Item("user", [{"type": "input_audio", "transcript": None}])
        self._turn_item = item.id
        where = {"audio_start_ms": int(turn.start_ms), "item_id": item.id}
        await self.send("input_audio_buffer.speech_started", **where)
        if self.settings.turn_detection.interrupt_response:
            await self.interrupt("turn_detected")

    async def interrupt(self, reason: str) -> None:
        """Stop what is being said."""
        if self.response is not None:
            self.response.cancel(reason)
        if self.speaker is not None:
            await self.speaker.clear()

    async def _turn_ended(self, turn: Turn) -> None:
        where = {"audio_end_ms": int(turn.end_ms), "item_id": self._turn_item}
        await self.send("input_audio_buffer.speech_stopped", **where)
        await self._commit_samples(self.buffer.take(turn.start_ms, turn.end_ms), self._turn_item)
        if self.settings.turn_detection is not None and self.settings.turn_detection.create_response:
            if self.response is None:
                self._respond(Response(self))
            else:
                self._answer_next = True

    async def _commit(self, event: Commit) -> None:
        if self.buffer.duration_ms < SHORTEST_COMMIT_MS:
            text = f"the buffer holds {self.buffer.duration_ms:.0f} ms, at least {SHORTEST_COMMIT_MS} are needed"
            raise bad_request(text, code="input_audio_buffer_commit_empty")
        if self.detector is not None:
            self.detector.end_turn()
        await self._commit_samples(self.buffer.take())

    async def _commit_samples(self, samples: np.ndarray, item_id: str = "") -> None:
        """Sound becomes an item of the user."""
        recording = await self.service.in_thread(load_audio, (samples, self.buffer.rate))
        item = Item("user", [{"type": "input_audio", "transcript": None}], sound={0: recording})
        item.id = item_id or item.id
        await self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=self.items.last_id)
        await self._add(item)
        if self.settings.transcription is not None:
            self.spawn(self._transcribe(item, recording))

    async def _add(self, item: Item, after: str | None = None) -> None:
        if len(self.items) >= self.items.max_items:
            raise bad_request(f"a conversation may have {self.items.max_items} items", code="too_many_items")
        try:
            before = self.items.insert(item, after)
        except KeyError:
            raise bad_request(f"there is no item {after!r}", "previous_item_id", "item_not_found") from None
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self.send(kind, previous_item_id=before, item=item.public())

    async def _clear(self, event: Clear) -> None:
        self.buffer.clear()
        if self.detector is not None:
            self.detector.end_turn()
        await self.send("input_audio_buffer.cleared")

    # -- items ---------------------------------------------------------------------------------------------------

    def new_item(self, param: ItemParam) -> Item:
        """An item as a client describes it."""
        item = Item(param.role, [part.model_dump(exclude_none=True, exclude={"audio"}) for part in param.content])
        item.id = param.id or item.id
        allowed = {"user": ("input_text", "input_audio"), "system": ("input_text",)}.get(
            param.role, ("output_text", "output_audio")
        )
        for index, part in enumerate(param.content):
            where = f"item.content[{index}]"
            if part.type not in allowed:
                raise bad_request(f"{part.type} is no content of the {param.role}; use {' or '.join(allowed)}", where)
            if part.type == "input_audio":
                if not part.audio:
                    raise bad_request("a recording is missing", f"{where}.audio")
                samples = decode(from_base64(part.audio, f"{where}.audio"), self.settings.input_format)
                item.sound[index] = load_audio((samples, self.buffer.rate), self.service.config.max_audio_seconds)
            elif part.text is None and part.transcript is None:
                raise bad_request("text is missing", f"{where}.text")
        return item

    async def _create_item(self, event: ItemCreate) -> None:
        if event.item.id is not None and self.items.find(event.item.id) is not None:
            raise bad_request(f"there already is an item {event.item.id!r}", "item.id")
        await self._add(await self.service.in_thread(self.new_item, event.item), event.previous_item_id)

    def _item(self, item_id: str) -> Item:
        item = self.items.find(item_id)
        if item is None:
            raise bad_request(f"there is no item {item_id!r}", "item_id", "item_not_found")
        return item

    async def _delete_item(self, event: ItemDelete) -> None:
        item = self._item(event.item_id)
        if self.response is not None and self.response.item is item:
            raise bad_request("the item is still being generated; cancel the response first", "item_id")
        self.items.remove(item)
        await self.send("conversation.item.deleted", item_id=item.id)

    async def _retrieve_item(self, event: ItemRetrieve) -> None:
        await self.send("conversation.item.retrieved", item=self._item(event.item_id).public())

    async def _truncate_item(self, event: ItemTruncate) -> None:
        await truncating.truncate_item(self, self._item(event.item_id), event.content_index, event.audio_end_ms)

    # -- responses -----------------------------------------------------------------------------------------------

    async def _create_response(self, event: ResponseCreate) -> None:
        if self.response is not None:
            raise bad_request(f"response {self.response.id} is still active", code="conversation_already_has_active_response")
        self._respond(Response(self, event.response))

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

    async def _cancel_response(self, event: ResponseCancel) -> None:
        active = self.response
        if active is None or event.response_id not in (None, active.id):
            raise bad_request("no such response is active", "response_id", "response_cancel_not_active")
        active.cancel("client_cancelled")

    async def _clear_output(self, event: OutputClear) -> None:
        if self.speaker is None:
            raise bad_request("output_audio_buffer.clear is for WebRTC", code="invalid_event")
        await self.interrupt("client_cancelled")

    # -- what the user said --------------------------------------------------------------------------------------

    def spawn(self, work: Awaitable[None]) -> None:
        """Do something on the side, for as long as the session lasts."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _transcribe(self, item: Item, recording: np.ndarray) -> None:
        kind, where = "conversation.item.input_audio_transcription", {"item_id": item.id, "content_index": 0}
        messages = [
            {"role": "user", "message_type": "text", "content": self.settings.transcription.prompt or INSTRUCTION},
            {"role": "user", "message_type": "audio", "content": (recording, 16_000)},
        ]
        try:
            text = ""
            async for delta in self.service.answer(self.service.generate(GenerationRequest(messages))):
                if isinstance(delta, TextDelta):
                    text += delta.text
                    await self.send(f"{kind}.delta", **where, delta=delta.text)
                elif isinstance(delta, FinishDelta):
                    seconds = len(recording) / 16_000
                    usage = {"type": "duration", "seconds": seconds}
                    item.content[0]["transcript"] = text
                    await self.send(f"{kind}.completed", **where, transcript=text, usage=usage)
        except AntiphonError as error:
            await self.send(f"{kind}.failed", **where, error=envelope(as_api_error(error))["error"])


HANDLERS = {
    SessionUpdate: Session._update,
    Append: Session._append,
    Commit: Session._commit,
    Clear: Session._clear,
    ItemCreate: Session._create_item,
    ItemDelete: Session._delete_item,
    ItemRetrieve: Session._retrieve_item,
    ItemTruncate: Session._truncate_item,
    ResponseCreate: Session._create_response,
    ResponseCancel: Session._cancel_response,
    OutputClear: Session._clear_output,
}


def _report(task: asyncio.Task) -> None:
    """A response ends its own errors; what is left is a client that has gone, or our mistake."""
    if not task.cancelled() and task.exception() is not None:
        logger.warning("a response ended early: %r", task.exception())


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
