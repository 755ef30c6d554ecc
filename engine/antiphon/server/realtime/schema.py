"""What clients may send: OpenAI's eleven events, and the part of a session that can be changed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator

from ..chat_schema import VOICES, Strict, Text

Id = Annotated[str, Field(min_length=1, max_length=100)]
MaxTokens = Annotated[int, Field(ge=1, le=100_000)] | Literal["inf"]
Modalities = list[Literal["text", "audio"]]


def _only(**allowed: tuple) -> Any:
    """A validator that refuses by name what this model has no use for."""

    def check(cls, value: Any, info) -> Any:
        if value is not None and value not in allowed[info.field_name]:
            raise ValueError(f"not supported; leave it out or use {' or '.join(map(repr, allowed[info.field_name]))}")
        return value

    return field_validator(*allowed)(classmethod(check))


class Format(Strict):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
    rate: int | None = None

    @field_validator("rate")
    @classmethod
    def _rate(cls, value: int | None, info) -> int | None:
        expected = 24_000 if info.data.get("type") == "audio/pcm" else 8_000
        if value is not None and value != expected:
            raise ValueError(f"expected {expected}")
        return value


class TurnDetection(Strict):
    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None


class Transcription(Strict):
    """Transcribe what the user says; every model name means this one."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None


class AudioInput(Strict):
    format: Format | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    noise_reduction: None = None


class AudioOutput(Strict):
    format: Format | None = None
    voice: Literal[VOICES] | None = None
    speed: float | None = None
    _check = _only(speed=(1,))


class Audio(Strict):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class _Generation(Strict):
    """Fields that a session and one response share; the official per-stream sampling arguments are extra fields."""

    instructions: Text | None = None
    output_modalities: Annotated[Modalities, Field(min_length=1, max_length=2)] | None = None
    max_output_tokens: MaxTokens | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    prompt: Any = None
    reasoning: Any = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    audio_temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    audio_top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    text_temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    text_top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    audio_repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    audio_repetition_window_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    text_repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    text_repetition_window_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    _check = _only(
        tools=([],), tool_choice=("auto", "none"), parallel_tool_calls=(True, False), prompt=(), reasoning=()
    )


class SessionChange(_Generation):
    type: Literal["realtime"] = "realtime"
    model: str | None = None
    audio: Audio | None = None
    include: Any = None
    tracing: Any = None
    truncation: Any = None
    _check_more = _only(include=([],), tracing=(), truncation=("auto", "disabled"))


class Content(Strict):
    type: Literal["input_text", "input_audio", "output_text", "output_audio"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None


class ItemParam(Strict):
    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Content], Field(min_length=1, max_length=64)]
    id: Id | None = None
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class ResponseParam(_Generation):
    conversation: Literal["auto", "none"] | None = None
    input: Annotated[list[ItemParam], Field(max_length=256)] | None = None
    metadata: dict[str, str] | None = None
    audio: Audio | None = None


class _Event(Strict):
    event_id: Annotated[str, Field(max_length=512)] | None = None


class SessionUpdate(_Event):
    type: Literal["session.update"]
    session: SessionChange


class Append(_Event):
    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):
    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    type: Literal["input_audio_buffer.clear"]


class ItemCreate(_Event):
    type: Literal["conversation.item.create"]
    item: ItemParam
    previous_item_id: Id | None = None


class ItemDelete(_Event):
    type: Literal["conversation.item.delete"]
    item_id: Id


class ItemRetrieve(_Event):
    type: Literal["conversation.item.retrieve"]
    item_id: Id


class ItemTruncate(_Event):
    type: Literal["conversation.item.truncate"]
    item_id: Id
    content_index: Annotated[int, Field(ge=0)]
    audio_end_ms: Annotated[int, Field(ge=0, le=10**9)]


class ResponseCreate(_Event):
    type: Literal["response.create"]
    response: ResponseParam | None = None


class ResponseCancel(_Event):
    type: Literal["response.cancel"]
    response_id: Id | None = None


class OutputClear(_Event):
    type: Literal["output_audio_buffer.clear"]


ClientEvent = Annotated[
    SessionUpdate
    | Append
    | Commit
    | Clear
    | ItemCreate
    | ItemDelete
    | ItemRetrieve
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
    | OutputClear,
    Field(discriminator="type"),
]
EVENTS: TypeAdapter = TypeAdapter(ClientEvent)
