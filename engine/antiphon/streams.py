"""From the two raw token streams of a request to what is returned (reference behaviour, section 9, "Result")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .config import LlmConfig


@dataclass
class TokenStreams:
    """Both streams of one request as they grow, and what of them is text and speech.

    ``text`` and ``audio`` are the ids that were fed back, one per step. ``push`` says which of a step's two tokens count:
    text ids below the audio range and before text_eos; speech ids at or above it, offset removed, after the delay.
    """

    config: LlmConfig
    text: list[int] = field(default_factory=list)
    audio: list[int] = field(default_factory=list)
    num_text: int = 0
    num_speech: int = 0
    text_ended: bool = False

    def push(self, text: int, audio: int) -> tuple[int | None, int | None]:
        """Store one step; returns the text id to decode and the speech token to sound, None where there is none."""
        step, offset = len(self.audio), self.config.audio_token_offset
        self.text.append(text)
        self.audio.append(audio)
        said = None
        if not self.text_ended:
            if text == self.config.special.text_eos:
                self.text_ended = True
            elif text < offset:
                said, self.num_text = text, self.num_text + 1
        if step >= self.config.audio_delay and audio >= offset:
            self.num_speech += 1
            return said, audio - offset
        return said, None

    @classmethod
    def of(cls, config: LlmConfig, text: Iterable[int], audio: Iterable[int]) -> tuple[list[int], list[int]]:
        """Text ids and speech tokens of complete streams."""
        streams = cls(config)
        pairs = [streams.push(t, a) for t, a in zip(text, audio, strict=True)]
        return [t for t, _ in pairs if t is not None], [a for _, a in pairs if a is not None]
