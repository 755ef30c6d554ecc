"""From the two raw token streams of a request to what is returned (reference behaviour, section 9, "Result")."""

from __future__ import annotations

from collections.abc import Iterable

from .config import LlmConfig


class TokenStreams:
    """Both streams of one request as they grow, and what of them is text and speech.

    ``text`` and ``audio`` are the ids that were fed back, one per step. ``push`` says which of a step's two tokens count:
    text ids below the audio range and before text_eos; speech ids at or above it, offset removed, after the delay.
    """

    __slots__ = ("_delay", "_eos", "_offset", "audio", "num_speech", "num_text", "text", "text_ended")

    def __init__(self, config: LlmConfig):
        self.text: list[int] = []
        self.audio: list[int] = []
        self.num_text = self.num_speech = 0
        self.text_ended = False
        self._offset, self._delay = config.audio_token_offset, config.audio_delay
        self._eos = config.special.text_eos

    def push(self, text: int, audio: int) -> tuple[int | None, int | None]:
        """Store one step; returns the text id to decode and the speech token to sound, None where there is none."""
        step = len(self.audio)
        self.text.append(text)
        self.audio.append(audio)
        said = None
        if not self.text_ended:
            if text == self._eos:
                self.text_ended = True
            elif text < self._offset:
                said = text
                self.num_text += 1
        if audio >= self._offset and step >= self._delay:
            self.num_speech += 1
            return said, audio - self._offset
        return said, None

    @classmethod
    def of(cls, config: LlmConfig, text: Iterable[int], audio: Iterable[int]) -> tuple[list[int], list[int]]:
        """Text ids and speech tokens of complete streams."""
        streams = cls(config)
        pairs = [streams.push(t, a) for t, a in zip(text, audio, strict=True)]
        return [t for t, _ in pairs if t is not None], [a for _, a in pairs if a is not None]
