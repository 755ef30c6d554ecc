"""The body of ``POST /v1/chat/completions``: OpenAI's fields that we support, and those that must hold their default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .audio_out import FORMATS

VOICES = ("default", "alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer", "verse")
VOICES += ("marin", "cedar")
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "webm", "pcm16")
MAX_TEXT = 1_000_000

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class Strict(BaseModel):
    """Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: Text


class InputAudio(Strict):
    """``data``: base64 of an encoded file, or of 16-bit 24 kHz samples for ``pcm16``."""

    data: str
    format: Literal[AUDIO_FORMATS]


class InputAudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrl(Strict):
    url: Annotated[str, Field(max_length=8192)]


class AudioUrlPart(Strict):
    type: Literal["audio_url"]
    audio_url: AudioUrl


UserPart = Annotated[TextPart | InputAudioPart | AudioUrlPart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class UserMessage(Strict):
    role: Literal["user"]
    content: Text | Annotated[list[UserPart], Field(min_length=1)]
    name: str | None = None


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class AudioReference(Strict):
    id: Annotated[str, Field(min_length=1, max_length=100)]


class AssistantMessage(Strict):
    """``audio.id`` names an earlier spoken answer, whose tokens then stand in the history as they were."""

    role: Literal["assistant"]
    content: Text | list[AssistantPart] | None = None
    audio: AudioReference | None = None
    refusal: Text | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and self.audio is None and self.refusal is None:
            raise ValueError("an assistant message needs content or audio")
        return self


Message = Annotated[UserMessage | SystemMessage | AssistantMessage, Field(discriminator="role")]


class AudioOptions(Strict):
    """The model has one voice; every known name gives that one."""

    format: Literal[FORMATS]
    voice: Literal[VOICES]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


DEFAULTS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "n": (1,),
    "top_p": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
}
"""Fields of OpenAI's that this model has no use for, and the values that ask for nothing."""


def _alike(value: Any) -> tuple[type, ...]:
    """Types whose values may equal ``value``: true is not 1 here."""
    return (int, float) if type(value) is int else (type(value),)


class ChatRequest(Strict):
    """What a chat completion is asked for. The official per-stream sampling arguments are extra fields."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)] | None = None
    audio: AudioOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: Annotated[str, Field(max_length=200)] | None = None

    audio_temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    audio_top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    text_temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    text_top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    audio_repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    audio_repetition_window_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    text_repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    text_repetition_window_size: Annotated[int, Field(ge=1, le=8192)] | None = None

    frequency_penalty: Any = None
    presence_penalty: Any = None
    n: Any = None
    top_p: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    parallel_tool_calls: Any = None
    response_format: Any = None
    service_tier: Any = None
    store: Any = None
    verbosity: Any = None
    prediction: Any = None
    moderation: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None

    @field_validator(*DEFAULTS)
    @classmethod
    def _unsupported(cls, value: Any, info) -> Any:
        allowed = DEFAULTS[info.field_name]
        if value is not None and not any(value == one and type(value) in _alike(one) for one in allowed):
            use = f" or use {' or '.join(map(repr, allowed))}" if allowed else ""
            raise ValueError(f"not supported; leave it out{use}")
        return value

    @field_validator("stop")
    @classmethod
    def _stop_texts(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and any(not text for text in ([value] if isinstance(value, str) else value)):
            raise ValueError("an empty text would end every answer at once")
        return value

    @property
    def speaks(self) -> bool:
        """Whether the answer is spoken."""
        return "audio" in (self.modalities or ())

    @property
    def output_type(self) -> str:
        return "both" if self.speaks else "text"
