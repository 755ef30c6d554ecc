"""One response of a session: from the items to events, until it is complete, cancelled or failed."""

from __future__ import annotations

import asyncio
import base64
import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import SAMPLE_RATE_OUT
from ...deltas import AudioDelta, FinishDelta, TextDelta, Usage
from ...errors import AntiphonError
from ...request import GenerationRequest
from ...request_stream import RequestStream
from ..errors import ApiError, as_api_error, bad_request
from ..ids import new_id
from . import item_events
from .audio import OutputEncoder
from .items import Item, ItemList
from .schema import ResponseParam
from .settings import public_format

if TYPE_CHECKING:
    from .session import Session


class Response:
    """Created, then :meth:`run` once in a task of its own."""

    def __init__(self, session: Session, param: ResponseParam | None = None):
        self.session, self.param = session, param or ResponseParam()
        self.settings = copy.deepcopy(session.settings)
        self.settings.change(self.param)
        self.id = new_id("resp_", 10)
        self.status, self.reason = "in_progress", None
        self.error: ApiError | None = None
        self.usage: Usage | None = None
        self.item: Item | None = None
        self.text = ""
        self.seconds = 0.0
        self.task: asyncio.Task | None = None
        self.done = asyncio.Event()
        self._stream: RequestStream | None = None
        self._cancelled: str | None = None

    @property
    def kept(self) -> bool:
        """Whether it becomes part of the conversation."""
        return self.param.conversation != "none"

    def cancel(self, reason: str) -> None:
        """End it; what was generated stays."""
        self._cancelled = self._cancelled or reason
        if self._stream is not None:
            self._stream.cancel()

    async def run(self) -> None:
        """All of it; errors become events."""
        send = self.session.send
        await send("response.created", response=self.public())
        try:
            await self._generate()
        except asyncio.CancelledError:
            if self._stream is not None:
                self._stream.abort()
            raise
        except AntiphonError as error:
            self.error, self.status = as_api_error(error), "failed"
            await self.session.send_error(self.error)
        if self.item is not None:
            self.item.audio_ms = round(self.seconds * 1000)
            await self._close_item()
        self.done.set()
        self.session.response_ended(self)
        await send("response.done", response=self.public())

    async def _generate(self) -> None:
        messages, history = await self._input()
        if not messages:
            raise bad_request("there is nothing to answer; add an item first", "response", "conversation_empty")
        speaks = self.settings.speaks
        if speaks and not self.session.service.engine.info.can_speak:
            raise bad_request("this server's model was loaded without a voice", "output_modalities")
        self.before = self.session.items.state()
        service = self.session.service
        request = GenerationRequest(
            messages,
            "both" if speaks else "text",
            self.settings.sampling_params(),
            service.speech,
            cache_salt=self.session.salt,
        )
        self._stream = service.generate(request, history=history, keep=self.kept)
        if self._cancelled:
            self._stream.cancel()
        await self._stream.accepted()
        await self._open_item()
        encoder = OutputEncoder(self.settings.output_format)
        async for delta in service.answer(self._stream):
            if isinstance(delta, TextDelta):
                self.text += delta.text
                kind = "output_audio_transcript" if speaks else "output_text"
                await self._part_event(f"response.{kind}.delta", delta=delta.text)
            elif isinstance(delta, AudioDelta):
                self.seconds += len(delta.pcm) / SAMPLE_RATE_OUT
                await self._sound(delta.pcm, encoder)
            else:
                await self._finish(delta, encoder)

    async def _input(self) -> tuple[list[dict[str, Any]], bytes | None]:
        if self.param.input is None:
            return self.session.items.engine_input(self.settings.instructions)
        items = ItemList()
        for one in self.param.input:
            items.insert(await self.session.service.in_thread(item_events.new_item, self.session, one))
        return items.engine_input(self.settings.instructions)

    async def _sound(self, pcm: np.ndarray, encoder: OutputEncoder) -> None:
        """To the transport's own track if it has one, else as an event."""
        if self.session.speaker is not None:
            await self.session.speaker.play(self, pcm)
            return
        data = encoder.push(pcm)
        if data:
            await self._part_event("response.output_audio.delta", delta=base64.b64encode(data).decode("ascii"))

    async def _finish(self, finish: FinishDelta, encoder: OutputEncoder) -> None:
        self.usage = finish.usage
        if finish.reason == "abort":
            self.status, self.reason = "cancelled", self._cancelled or "client_cancelled"
        elif finish.reason == "length":
            self.status, self.reason = "incomplete", "max_output_tokens"
        else:
            self.status = "completed"
        rest = encoder.push(np.zeros(0, np.float32), last=True)
        if rest and self.session.speaker is None:
            await self._part_event("response.output_audio.delta", delta=base64.b64encode(rest).decode("ascii"))
        conversation = self._stream.conversation
        if conversation is not None:
            self.item.kept, self.item.prompt_len = conversation.conversation, conversation.prompt_len
            self.item.before, self.item.instructions = self.before, self.settings.instructions

    async def _open_item(self) -> None:
        session, kind = self.session, "output_audio" if self.settings.speaks else "output_text"
        self.item = Item("assistant", [{"type": kind}], status="in_progress")
        before = session.items.insert(self.item) if self.kept else None
        await session.send(
            "response.output_item.added", response_id=self.id, output_index=0, item=self.item.public() | {"content": []}
        )
        if self.kept:
            shown = self.item.public() | {"content": []}
            await session.send("conversation.item.added", previous_item_id=before, item=shown)
        await self._part_event("response.content_part.added", part=self._part(""))

    async def _close_item(self) -> None:
        words = "transcript" if self.settings.speaks else "text"
        self.item.status = "completed" if self.status == "completed" else "incomplete"
        self.item.content[0][words] = self.text
        if self.settings.speaks:
            await self._part_event("response.output_audio.done")
            await self._part_event("response.output_audio_transcript.done", transcript=self.text)
        else:
            await self._part_event("response.output_text.done", text=self.text)
        await self._part_event("response.content_part.done", part=self._part(self.text))
        session = self.session
        await session.send("response.output_item.done", response_id=self.id, output_index=0, item=self.item.public())
        if self.kept:
            await session.send("conversation.item.done", previous_item_id=None, item=self.item.public())

    def _part(self, words: str) -> dict[str, Any]:
        return {"type": "audio", "transcript": words} if self.settings.speaks else {"type": "text", "text": words}

    async def _part_event(self, kind: str, **more: Any) -> None:
        where = {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}
        await self.session.send(kind, **where, **more)

    def public(self) -> dict[str, Any]:
        """OpenAI's response object."""
        output = {"format": public_format(self.settings.output_format), "voice": self.settings.voice}
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": self._details(),
            "output": [] if self.item is None or self.status == "in_progress" else [self.item.public()],
            "conversation_id": self.session.conversation_id if self.kept else None,
            "output_modalities": self.settings.output_modalities,
            "max_output_tokens": self.settings.max_output_tokens,
            "audio": {"output": output},
            "usage": self.usage and _usage(self.usage),
            "metadata": self.param.metadata,
        }

    def _details(self) -> dict[str, Any] | None:
        if self.error is not None:
            error = {"type": "server_error" if self.error.status >= 500 else "invalid_request_error"}
            return {"type": "failed", "error": error | {"code": self.error.code, "message": self.error.message}}
        return {"type": self.status, "reason": self.reason} if self.reason else None


def _usage(usage: Usage) -> dict[str, Any]:
    output = usage.text_tokens + usage.audio_tokens
    return {
        "total_tokens": usage.prompt_tokens + output,
        "input_tokens": usage.prompt_tokens,
        "output_tokens": output,
        "input_token_details": {"cached_tokens": usage.cached_tokens},
        "output_token_details": {"text_tokens": usage.text_tokens, "audio_tokens": usage.audio_tokens},
    }
