"""From OpenAI's messages to the engine's: roles folded, recordings decoded, spoken answers taken from the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import SAMPLE_RATE_IN
from ..conversation_codec import ConversationFormatError
from . import audio_url
from .chat_schema import AssistantMessage, SystemMessage, UserMessage
from .errors import ApiError, bad_request
from .media import AudioBudget, from_base64
from .records import AudioRecord, digest
from .service import Service


@dataclass(frozen=True)
class EngineInput:
    """Messages in the official format, and the encoded conversation before them, if it is known as tokens."""

    messages: list[dict[str, Any]]
    history: bytes | None


async def engine_input(service: Service, messages: list) -> EngineInput:
    """What the engine is asked.

    The last spoken answer whose conversation is stored, and whose earlier messages are those that are sent again, stands
    for everything up to it. Where the messages before it are others, its transcript takes its place.
    """
    if not isinstance(messages[-1], (UserMessage, SystemMessage)):
        raise bad_request("the last message must be the user's", f"messages[{len(messages) - 1}].role")
    records = await _records(service, messages)
    start, history = 0, None
    for index in sorted(records, reverse=True):
        if digest(messages[:index]) == records[index].before:
            start, history = index + 1, records[index].conversation
            break
    budget = AudioBudget(service.config.max_audio_seconds)
    if all(message.content is None or isinstance(message.content, str) for message in messages[start:]):
        return EngineInput(_build(service, messages, start, records, budget), history)
    built = await service.in_thread(_build, service, messages, start, records, budget)
    return EngineInput(built, history)


async def _records(service: Service, messages: list) -> dict[int, AudioRecord]:
    """The stored answers that the messages name, by index."""
    found = {}
    for index, message in enumerate(messages):
        if not isinstance(message, AssistantMessage) or message.audio is None:
            continue
        param = f"messages[{index}].audio.id"
        entry = await service.in_thread(service.store.get, message.audio.id)
        if entry is None:
            text = f"no spoken answer {message.audio.id!r} is stored, or it has expired; send its transcript as content"
            raise ApiError(400, text, param=param, code="audio_not_found")
        try:
            found[index] = AudioRecord.unpack(entry.value)
        except ConversationFormatError as error:
            raise ApiError(400, f"{error}; send its transcript as content", param=param, code="audio_not_found") from error
    return found


def _build(service: Service, messages: list, start: int, records: dict, budget: AudioBudget) -> list[dict[str, Any]]:
    """Messages from ``start`` on. Instructions become text of the user in front of the turn, as the model was trained."""
    built = []
    for index, message in enumerate(messages[start:], start):
        if isinstance(message, AssistantMessage):
            words = records[index].transcript if index in records else _assistant_text(message)
            built.append({"role": "assistant", "message_type": "text", "content": words})
        elif isinstance(message.content, str):
            built.append({"role": "user", "message_type": "text", "content": message.content})
        else:
            for number, part in enumerate(message.content):
                built.append(_part(service, part, f"messages[{index}].content[{number}]", budget))
    return built


def _part(service: Service, part: Any, where: str, budget: AudioBudget) -> dict[str, Any]:
    if part.type == "text":
        return {"role": "user", "message_type": "text", "content": part.text}
    if part.type == "input_audio":
        param = f"{where}.input_audio.data"
        samples = budget.decode(from_base64(part.input_audio.data, param), part.input_audio.format, param)
    else:
        config, param = service.config, f"{where}.audio_url.url"
        data = audio_url.fetch(
            part.audio_url.url, config.audio_url_hosts, config.max_upload_bytes, param, allow_private=config.audio_url_private
        )
        samples = budget.decode(data, "", param)
    return {"role": "user", "message_type": "audio", "content": (samples, SAMPLE_RATE_IN)}


def _assistant_text(message: AssistantMessage) -> str:
    content = message.content if message.content is not None else message.refusal
    if isinstance(content, str):
        return content
    return "".join(part.text if part.type == "text" else part.refusal for part in content)
