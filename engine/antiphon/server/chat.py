"""``POST /v1/chat/completions``."""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from .. import __version__
from ..deltas import AudioDelta, FinishDelta, TextDelta, Usage
from ..errors import AntiphonError
from ..request import GenerationRequest
from ..request_stream import RequestStream
from .audio_out import base64_pcm16, encode
from .chat_messages import engine_input
from .chat_schema import ChatRequest
from .connection import until_disconnect
from .errors import as_api_error, bad_request, envelope
from .event_stream import DONE, EventStream, event
from .ids import new_id
from .records import AudioRecord, digest
from .service import Service, sampling_of

router = APIRouter()

FINGERPRINT = f"antiphon-{__version__}"


@dataclasses.dataclass(frozen=True)
class Completion:
    """What all parts of one answer share."""

    request: ChatRequest
    stream: RequestStream
    id: str = dataclasses.field(default_factory=lambda: new_id("chatcmpl-"))
    audio_id: str = dataclasses.field(default_factory=lambda: new_id("audio_"))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def body(self, kind: str, choices: list, **more: Any) -> dict[str, Any]:
        """A ``chat.completion`` or one of its chunks."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **more,
        }

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """One server-sent event."""
        more = {"usage": None} if _wants_usage(self.request) else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self.body("chat.completion.chunk", [choice], **more))


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation in text, or in text and speech."""
    service: Service = request.app.state.service
    check(service, body)
    service.check_room()
    given = await engine_input(service, body.messages)
    stream = service.generate(_generation(service, body, given.messages), history=given.history, keep=body.speaks)
    try:
        await stream.accepted()
        completion = Completion(body, stream)
        if body.stream:
            return EventStream(stream_answer(service, completion))
        return await until_disconnect(request, whole_answer(service, completion))
    except BaseException:
        stream.abort()
        raise


def check(service: Service, body: ChatRequest) -> None:
    """What the schema cannot say."""
    service.check_model(body.model)
    if len(body.messages) > service.config.max_messages:
        raise bad_request(f"more than {service.config.max_messages} messages", "messages")
    if len(set(body.modalities or ())) != len(body.modalities or ()):
        raise bad_request("modalities: the same one twice", "modalities")
    if body.speaks and body.audio is None:
        raise bad_request("a spoken answer needs audio: {voice, format}", "audio", "missing_required_parameter")
    if body.audio is not None and not body.speaks:
        raise bad_request("audio is given, but modalities does not ask for it", "audio")
    if body.speaks and not service.engine.info.can_speak:
        raise bad_request("this server's model was loaded without a voice", "modalities")
    if body.stream and body.speaks and body.audio.format != "pcm16":
        raise bad_request("a streamed answer speaks in pcm16 only", "audio.format")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true", "stream_options")


def _generation(service: Service, body: ChatRequest, messages: list[dict[str, Any]]) -> GenerationRequest:
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = sampling_of(body, seed=body.seed, max_new_tokens=limit, temperature=body.temperature)
    stop = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    salt = (body.prompt_cache_key or "").encode()
    return GenerationRequest(messages, body.output_type, sampling, service.speech, stop=stop, cache_salt=salt)


async def whole_answer(service: Service, completion: Completion) -> Response:
    """The answer in one piece."""
    text, pieces, finish = [], [np.zeros(0, np.float32)], None
    async for delta in service.answer(completion.stream):
        if isinstance(delta, TextDelta):
            text.append(delta.text)
        elif isinstance(delta, AudioDelta):
            pieces.append(delta.pcm)
        else:
            finish = delta
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text), "refusal": None}
    if completion.request.speaks:
        data = await service.in_thread(encode, np.concatenate(pieces), completion.request.audio.format)
        expires_at = await keep(service, completion, "".join(text))
        message |= {
            "content": None,
            "audio": {
                "id": completion.audio_id,
                "data": base64.b64encode(data).decode("ascii"),
                "expires_at": expires_at,
                "transcript": "".join(text),
            },
        }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish.reason}
    return JSONResponse(completion.body("chat.completion", [choice], usage=usage_of(finish.usage)))


async def stream_answer(service: Service, completion: Completion) -> AsyncGenerator[bytes, None]:
    """The answer in server-sent events; an error becomes an event too, since the status has been sent.

    What is ready at once is sent at once: the greeting with the first delta, everything behind the last one together.
    """
    speaks, text = completion.request.speaks, []
    greeting = completion.chunk({"role": "assistant", "refusal": None} | ({} if speaks else {"content": ""}))
    try:
        async for delta in service.answer(completion.stream):
            if isinstance(delta, TextDelta):
                text.append(delta.text)
                audio = {"id": completion.audio_id, "transcript": delta.text}
                piece = completion.chunk({"audio": audio} if speaks else {"content": delta.text})
            elif isinstance(delta, AudioDelta):
                piece = completion.chunk({"audio": {"id": completion.audio_id, "data": base64_pcm16(delta.pcm)}})
            else:
                piece = await _ending(service, completion, delta, "".join(text))
            yield greeting + piece
            greeting = b""
    except AntiphonError as error:
        yield greeting + event(envelope(as_api_error(error))) + DONE
    finally:
        completion.stream.abort()


async def _ending(service: Service, completion: Completion, finish: FinishDelta, text: str) -> bytes:
    events = []
    if completion.request.speaks:
        expires_at = await keep(service, completion, text)
        events.append(completion.chunk({"audio": {"id": completion.audio_id, "expires_at": expires_at}}))
    events.append(completion.chunk({}, finish.reason))
    if _wants_usage(completion.request):
        events.append(event(completion.body("chat.completion.chunk", [], usage=usage_of(finish.usage))))
    return b"".join((*events, DONE))


async def keep(service: Service, completion: Completion, text: str) -> int:
    """Store a spoken answer for a next turn; returns when it expires."""
    kept = completion.stream.conversation
    ttl = service.config.conversation_ttl
    if kept is None:
        return int(time.time())
    record = AudioRecord(text, digest(completion.request.messages), kept.conversation)
    entry = await service.in_thread(service.store.put, completion.audio_id, record.pack(), ttl)
    return int(entry.expires_at)


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts; the tokens of the two streams are added."""
    total = usage.text_tokens + usage.audio_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": total,
        "total_tokens": usage.prompt_tokens + total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"text_tokens": usage.text_tokens, "audio_tokens": usage.audio_tokens},
    }


def _wants_usage(request: ChatRequest) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage
