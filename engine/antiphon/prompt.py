"""Messages to the dual-stream prompt (reference behaviour sections 7 and 8).

``parse_messages`` -> ``load_recordings`` -> ``PromptBuilder.check_length`` -> ``AudioEncoder.encode`` ->
``PromptBuilder.build``; ``make_prompt`` does all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .audio import AudioInput, load_audio, num_tokens
from .config import OUTPUT_TYPES, LlmConfig
from .errors import AudioError, InputError, PromptTooLongError
from .execution.audio_encoder import AudioEncoder, EncodedAudio
from .text import TextTokenizer

ROLES = ("user", "assistant")
MESSAGE_TYPES = ("text", "audio", "audio-text")


@dataclass(frozen=True, eq=False)
class Message:
    """One validated message. ``text`` is None for type audio, ``audio`` is None for type text."""

    index: int
    role: str
    message_type: str
    text: str | None
    audio: AudioInput | None


@dataclass(frozen=True, eq=False)
class Prompt:
    """A dual-stream prompt of P positions; all tensors are on the CPU.

    Attributes:
        audio_ids: int64 [P].
        text_ids: int64 [P].
        continuous_mask: uint8 [P], 1 where a continuous feature is added.
        feature_rows: int64 [P], row into the features of all ``audios`` joined, or -1.
        audios: the recordings with continuous features, in order; the K-th media_begin/media_end pair is the K-th.
        all_audios: every recording of the messages in order, those without features (audio-text) too.
        output_type: ``text`` or ``both``.
    """

    audio_ids: torch.Tensor
    text_ids: torch.Tensor
    continuous_mask: torch.Tensor
    feature_rows: torch.Tensor
    audios: tuple[EncodedAudio, ...]
    all_audios: tuple[EncodedAudio, ...]
    output_type: str

    def __len__(self) -> int:
        return len(self.audio_ids)

    def features(self) -> torch.Tensor | None:
        """Features of all ``audios`` joined, [F, adaptor input], or None for a prompt without."""
        return torch.cat([audio.features for audio in self.audios]) if self.audios else None


def parse_messages(
    messages: Sequence[Mapping[str, Any]], base_dir: str | os.PathLike[str] | None = None
) -> list[Message]:
    """Check an official message list; recordings are not opened yet.

    Args:
        messages: mappings with ``role``, ``message_type`` and ``content``: a string for ``text``, a recording for
            ``audio``, ``[recording, text]`` for ``audio-text``. Other keys are ignored, as in the official code.
        base_dir: relative paths of recordings start here; None for the current folder.

    Raises:
        InputError: names message and field, says what was expected and what came.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InputError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise InputError("messages: the list is empty; expected at least one message")
    return [_parse(index, message, base_dir) for index, message in enumerate(messages)]


def load_recordings(messages: Sequence[Message], max_seconds: float | None = None) -> list[np.ndarray]:
    """Samples (float32 [N] at 16 kHz) of every message that has a recording, in order; AudioError names the message."""
    recordings = []
    for message in messages:
        if message.message_type == "text":
            continue
        try:
            recordings.append(load_audio(message.audio, max_seconds))
        except AudioError as error:
            raise AudioError(f"messages[{message.index}].content: {error}") from error
    return recordings


def wants_features(messages: Sequence[Message]) -> list[bool]:
    """Per recording, whether the prompt uses its continuous features (an audio message) or only its codes."""
    return [message.message_type == "audio" for message in messages if message.message_type != "text"]


def make_prompt(
    messages: Sequence[Mapping[str, Any]],
    output_type: str,
    builder: PromptBuilder,
    encoder: AudioEncoder,
    base_dir: str | os.PathLike[str] | None = None,
) -> Prompt:
    """From an official message list to a prompt in one call; a prompt that is too long is refused before encoding."""
    parsed = parse_messages(messages, base_dir)
    recordings = load_recordings(parsed)
    builder.check_length(parsed, [len(samples) for samples in recordings], output_type)
    return builder.build(parsed, encoder.encode(recordings, wants_features(parsed)), output_type)


class PromptBuilder:
    """Joins text ids and speech codes into the two streams of a model's prompt."""

    def __init__(self, tokenizer: TextTokenizer, config: LlmConfig):
        self.tokenizer, self.config = tokenizer, config

    def check_length(self, messages: Sequence[Message], num_samples: Sequence[int], output_type: str) -> int:
        """Positions of the prompt, known from the lengths of its recordings. PromptTooLongError if over the context."""
        placeholders = [EncodedAudio(torch.zeros(num_tokens(n), dtype=torch.int64), None, b"", n) for n in num_samples]
        return len(self.build(messages, placeholders, output_type))

    def build(self, messages: Sequence[Message], audios: Sequence[EncodedAudio], output_type: str) -> Prompt:
        """The prompt of ``messages``, whose recordings in order are ``audios``.

        Raises:
            InputError: unknown output type, or an audio-text message with more text than sound.
            PromptTooLongError: more positions than the model's context; says both lengths.
        """
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r}: expected one of {OUTPUT_TYPES}")
        streams, pending = _Streams(self.config.special.text_blank), iter(audios)
        for message, first, last in _turns(messages):
            if first:
                streams.mark(self._start_of(message.role))
            audio = None if message.message_type == "text" else next(pending)
            self._add(streams, message, audio, last, output_type)
            if last:
                streams.mark(self.config.special.msg_end)
        streams.mark(self.config.special.assistant_start)
        return self._finish(streams, tuple(audios), output_type)

    def _start_of(self, role: str) -> int:
        special = self.config.special
        return special.user_start if role == "user" else special.assistant_start

    def _add(self, streams: _Streams, message: Message, audio: EncodedAudio | None, last: bool, output_type: str):
        special, offset = self.config.special, self.config.audio_token_offset
        if message.message_type == "text":
            streams.text(self.tokenizer.encode(message.text))
            if message.role == "assistant":
                streams.text([special.text_eos])
        elif message.message_type == "audio":
            streams.mark(special.media_begin)
            streams.continuous((audio.speech_codes + offset).tolist(), audio)
            streams.mark(special.media_end)
            if last:
                streams.mark(special.speech_ct if output_type == "text" else special.speech_ctd)
        else:
            self._add_spoken_text(streams, message, (audio.speech_codes + offset).tolist())

    def _add_spoken_text(self, streams: _Streams, message: Message, codes: list[int]) -> None:
        delay = self.config.audio_delay
        text = self.tokenizer.encode(message.text)
        if len(text) > delay + len(codes):
            raise InputError(
                f"messages[{message.index}].content: the text has {len(text)} ids, but its recording of {len(codes)} "
                f"speech tokens has room for {delay + len(codes)}; text and recording must belong together"
            )
        streams.both([streams.blank] * delay + codes, text + [streams.blank] * (delay + len(codes) - len(text)))

    def _finish(self, streams: _Streams, audios: tuple[EncodedAudio, ...], output_type: str) -> Prompt:
        length, limit = len(streams.audio_ids), self.config.max_positions
        if length > limit:
            raise PromptTooLongError(
                f"the prompt has {length} positions, but the model's context has {limit}; "
                "shorten the text, the recordings (12.5 positions per second) or the history"
            )
        rows = torch.tensor(streams.feature_rows, dtype=torch.int64)
        return Prompt(
            audio_ids=torch.tensor(streams.audio_ids, dtype=torch.int64),
            text_ids=torch.tensor(streams.text_ids, dtype=torch.int64),
            continuous_mask=(rows >= 0).to(torch.uint8),
            feature_rows=rows,
            audios=tuple(streams.audios),
            all_audios=audios,
            output_type=output_type,
        )


@dataclass
class _Streams:
    """The streams while they grow; all three lists keep one length."""

    blank: int
    audio_ids: list[int] = field(default_factory=list)
    text_ids: list[int] = field(default_factory=list)
    feature_rows: list[int] = field(default_factory=list)
    audios: list[EncodedAudio] = field(default_factory=list)
    num_features: int = 0

    def both(self, audio_ids: list[int], text_ids: list[int]) -> None:
        self.audio_ids += audio_ids
        self.text_ids += text_ids
        self.feature_rows += [-1] * len(audio_ids)

    def mark(self, audio_id: int) -> None:
        self.both([audio_id], [self.blank])

    def text(self, ids: list[int]) -> None:
        self.both([self.blank] * len(ids), ids)

    def continuous(self, audio_ids: list[int], audio: EncodedAudio) -> None:
        self.audio_ids += audio_ids
        self.text_ids += [self.blank] * len(audio_ids)
        self.feature_rows += range(self.num_features, self.num_features + len(audio_ids))
        self.num_features += len(audio_ids)
        self.audios.append(audio)


def _turns(messages: Sequence[Message]) -> Iterator[tuple[Message, bool, bool]]:
    """Each message with: is it the first of its turn, is it the last (a turn = neighbours of one role)."""
    roles = [None, *(message.role for message in messages), None]
    for message, before, after in zip(messages, roles, roles[2:]):
        yield message, before != message.role, after != message.role


def _parse(index: int, message: Any, base_dir: str | os.PathLike[str] | None) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise InputError(f"{where}: expected a mapping with role, message_type and content, got {message!r:.80}")
    role = _one_of(message, "role", ROLES, where)
    message_type = _one_of(message, "message_type", MESSAGE_TYPES, where)
    if "content" not in message:
        raise InputError(f"{where}: 'content' is missing")
    text, audio = _split_content(message["content"], message_type, f"{where}.content")
    if audio is not None and base_dir is not None and isinstance(audio, (str, os.PathLike)):
        audio = Path(base_dir) / audio
    return Message(index, role, message_type, text, audio)


def _split_content(content: Any, message_type: str, where: str) -> tuple[str | None, Any]:
    if message_type == "text":
        return _text(content, where), None
    if message_type == "audio":
        return None, _audio(content, where)
    if isinstance(content, str) or not isinstance(content, Sequence) or len(content) != 2:
        raise InputError(f"{where}: expected [recording, text], got {content!r:.80}")
    return _text(content[1], f"{where}[1]"), _audio(content[0], f"{where}[0]")


def _text(content: Any, where: str) -> str:
    if not isinstance(content, str):
        raise InputError(f"{where}: expected a string, got {type(content).__name__}")
    return content


def _audio(content: Any, where: str) -> Any:
    if content is None or isinstance(content, (bool, int, float)):
        raise AudioError(f"{where}: expected a recording, got {content!r}")
    return content


def _one_of(message: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or value not in allowed:
        came = f"got {value!r:.80}" if key in message else "it is missing"
        raise InputError(f"{where}.{key}: expected one of {', '.join(map(repr, allowed))}; {came}")
    return value
