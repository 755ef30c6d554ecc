"""From the two raw token streams of a request to what is returned (reference behaviour, section 9, "Result").

Text are the ids below the audio range up to text_eos; speech the ids at or above it, offset removed, after the delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import LlmConfig


@dataclass(frozen=True)
class TokenStreams:
    """Both streams of one request: the ids that were fed back, one per step."""

    text: Sequence[int]
    audio: Sequence[int]

    @classmethod
    def of(cls, config: LlmConfig, text: Sequence[int], audio: Sequence[int]) -> tuple[list[int], list[int]]:
        """Text ids and speech tokens of complete streams, which must be equally long."""
        if len(text) != len(audio):
            raise ValueError(f"the streams of one request are equally long, got {len(text)} and {len(audio)}")
        texts, audios = np.asarray(text, np.int64), np.asarray(audio, np.int64)
        ends = np.flatnonzero(texts == config.special.text_eos)
        said = texts[: ends[0]] if len(ends) else texts
        spoken = audios[config.audio_delay :]
        offset = config.audio_token_offset
        return said[said < offset].tolist(), (spoken[spoken >= offset] - offset).tolist()

    def counts(self, config: LlmConfig) -> tuple[int, int]:
        """How many of the ids are text and how many speech."""
        text, speech = self.of(config, self.text, self.audio)
        return len(text), len(speech)


class SlotStreams:
    """The same rules for the pairs of one step, all slots at once. Knows whose text has ended."""

    def __init__(self, config: LlmConfig, num_slots: int):
        self._offset, self._delay = config.audio_token_offset, config.audio_delay
        self._eos = config.special.text_eos
        self._ended = np.zeros(num_slots, bool)

    def open(self, slot: int, text: Sequence[int] = ()) -> None:
        """A request moves in that has drawn these text ids so far."""
        self._ended[slot] = self._eos in text

    def push(
        self, slots: np.ndarray, steps: np.ndarray, text: np.ndarray, audio: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pairs that distinct slots drew in their steps of these numbers (from 0), int64 [R] each.

        Returns bool [R], bool [R]: whether the text id is text to decode, whether the audio id is a token to sound.
        """
        ended = self._ended[slots] | (text == self._eos)
        self._ended[slots] = ended
        return ~ended & (text < self._offset), (steps >= self._delay) & (audio >= self._offset)
