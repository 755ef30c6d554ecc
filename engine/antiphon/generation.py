"""One request's way out: token pairs in, deltas out, with its usage and timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from antiphon_kernels import Stop

from .config import LlmConfig
from .deltas import AudioDelta, Delta, FinishDelta, TextDelta, Timings, Usage
from .speech import SpeechStream
from .streams import TokenStreams
from .text import TextStream, TextTokenizer


class Generation:
    """Turns the token pairs and the sound of one request into deltas.

    Args:
        prompt_len: positions of the prompt.
        voice: where speech tokens go; None for a request that only writes.
        clock: seconds, for the timings.
    """

    def __init__(
        self,
        config: LlmConfig,
        tokenizer: TextTokenizer,
        prompt_len: int,
        voice: SpeechStream | None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.streams = TokenStreams(config)
        self.voice = voice
        self.stop = Stop.RUNNING
        self.prompt_len = prompt_len
        self.cached_tokens = 0
        self._text = TextStream(tokenizer)
        self._clock, self._added = clock, clock()
        self._first_text = self._first_audio = self._encoded = None

    def push(self, text: int, audio: int) -> Iterator[Delta]:
        """One step's pair, after forcing; yields new text, hands a speech token on."""
        text_id, speech = self.streams.push(text, audio)
        if speech is not None and self.voice is not None:
            self.voice.push([speech])
        if text_id is not None:
            yield from self._say(self._text.push([text_id]))

    def end(self, stop: Stop) -> Iterator[Delta]:
        """The last pair has been pushed; yields what is left of the text, closes the queue of speech tokens."""
        self.stop = stop
        if self.voice is not None:
            self.voice.finish()
        yield from self._say(self._text.flush())

    def sound(self, pcm: np.ndarray) -> Iterator[Delta]:
        """Samples of one chunk, possibly none."""
        if len(pcm):
            self._first_audio = self._first_audio or self._elapsed()
            yield AudioDelta(pcm)

    def finish(self) -> FinishDelta:
        """The end, after the last text and sound."""
        usage = Usage(
            prompt_tokens=self.prompt_len,
            steps=len(self.streams.text),
            text_tokens=self.streams.num_text,
            audio_tokens=self.streams.num_speech,
            cached_tokens=self.cached_tokens,
        )
        timings = Timings(self._encoded, self._first_text, self._first_audio, self._elapsed())
        return FinishDelta("length" if self.stop is Stop.LIMIT else "stop", usage, timings)

    def _say(self, text: str) -> Iterator[Delta]:
        if text:
            self._first_text = self._first_text or self._elapsed()
            yield TextDelta(text)

    def _elapsed(self) -> float:
        return self._clock() - self._added
