"""What a caller asks of one generation: sampling of both streams, limits, seed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import OUTPUT_TYPES, LlmConfig
from .errors import InputError, PromptTooLongError
from .speech import SpeechOptions

if TYPE_CHECKING:
    from .conversation import Conversation

MAX_POSITIONS_BOTH = 1500
MAX_POSITIONS_TEXT = 7500


@dataclass(frozen=True)
class StreamSampling:
    """Sampling of one stream (reference behaviour, section 9). Temperature 0 is greedy; top_k 0 keeps all ids."""

    temperature: float = 0.0
    top_k: int = 5
    repetition_penalty: float = 1.0
    repetition_window_size: int = 16

    def check(self, stream: str) -> None:
        """Raise InputError for a value out of range, naming it as the official argument is named."""
        rules = {
            "temperature": (self.temperature >= 0, "a number >= 0"),
            "top_k": (self.top_k >= 0, "an integer >= 0 (0 keeps all)"),
            "repetition_penalty": (self.repetition_penalty > 0, "a number > 0"),
            "repetition_window_size": (self.repetition_window_size >= 1, "an integer >= 1"),
        }
        for name, (fits, expected) in rules.items():
            if not fits:
                raise InputError(f"{stream}_{name} must be {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class SamplingParams:
    """How both streams are sampled and how long. ``max_new_tokens`` -1 means the official limits."""

    text: StreamSampling = StreamSampling()
    audio: StreamSampling = StreamSampling(repetition_window_size=64)
    max_new_tokens: int = -1
    seed: int | None = None

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        self.text.check("text")
        self.audio.check("audio")
        if self.max_new_tokens < -1 or self.max_new_tokens == 0:
            raise InputError(f"max_new_tokens must be -1 (the model's limit) or at least 1, got {self.max_new_tokens}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be an integer from 0 to 2**63 - 1, got {self.seed}")

    def resolved_seed(self) -> int:
        """The caller's seed, or a fresh one."""
        return secrets.randbits(63) if self.seed is None else self.seed


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One request to an engine.

    messages: official message list; recordings as paths, bytes, open files or arrays. history: complete turns before them,
    as tokens. speech: chunking and overlap. noise: arrays per chunk instead of seeded noise. stop: texts that end the
    answer (not part of it). priority: smaller goes first. cache_salt: share cached prefixes only with the same salt.
    """

    messages: Sequence[Mapping[str, Any]]
    output_type: str = "text"
    sampling: SamplingParams = SamplingParams()
    speech: SpeechOptions = field(default_factory=SpeechOptions)
    noise: Iterable[np.ndarray] | None = None
    history: Conversation | None = None
    stop: tuple[str, ...] = ()
    priority: int = 0
    cache_salt: bytes = b""


def step_limit(prompt_len: int, output_type: str, max_new_tokens: int, config: LlmConfig) -> int:
    """How many steps a request may run.

    Without a caller's limit the official ones hold: 1500 positions with speech, 7500 with text only, prompt included. Where
    these leave nothing (the official code then fails), and wherever the caller says more than fits, the model's
    context is the limit.
    """
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
    room = config.max_positions - prompt_len
    if room < 1:
        raise PromptTooLongError(
            f"the prompt has {prompt_len} positions, the model's context is {config.max_positions} "
            "and needs room for at least one more; shorten the audio, the text or the history"
        )
    if max_new_tokens != -1:
        return min(max_new_tokens, room)
    official = (MAX_POSITIONS_BOTH if output_type == "both" else MAX_POSITIONS_TEXT) - prompt_len
    return min(official, room) if official > 0 else room


def sampling_params(*, max_new_tokens: int = -1, seed: int | None = None, **official: float) -> SamplingParams:
    """From the official flat arguments (``audio_temperature``, ``text_top_k``, ...); InputError names an unknown one."""
    streams: dict[str, dict[str, float]] = {"text": {}, "audio": {"repetition_window_size": 64}}
    names = {field.name for field in fields(StreamSampling)}
    for key, value in official.items():
        stream, _, name = key.partition("_")
        if stream not in streams or name not in names:
            raise InputError(f"unknown sampling argument {key!r}; expected text_ or audio_ and one of {sorted(names)}")
        streams[stream][name] = value
    params = SamplingParams(StreamSampling(**streams["text"]), StreamSampling(**streams["audio"]), max_new_tokens, seed)
    params.check()
    return params
