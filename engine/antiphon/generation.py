"""One request's way out: text ids and sound in, deltas out, with its usage and timings."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from antiphon_kernels import Stop

from .config import LlmConfig
from .deltas import AudioDelta, FinishDelta, TextDelta, Timings, Usage
from .streams import TokenStreams
from .text import TextStream, TextTokenizer
from .text.stop import StopTexts


class Generation:
    """Turns the text ids and the sound of one request into deltas. ``say(text_id)``: new text of one more id, possibly none.

    Args:
        prompt_len: positions of the prompt.
        stop: texts that end the answer; ``stopped`` is true once one has come, whatever the model says next.
        clock: seconds, for the timings.
    """

    def __init__(
        self,
        config: LlmConfig,
        tokenizer: TextTokenizer,
        prompt_len: int,
        stop: tuple[str, ...] = (),
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.config = config
        self.prompt_len = prompt_len
        self.cached_tokens = 0
        self.reason = "stop"
        self.stopped = False
        self._stop_texts = StopTexts(stop)
        self._text = TextStream(tokenizer)
        self.say: Callable[[int], str] = self._say_until_stopped if stop else self._text.push_one
        self._clock, self._added = clock, clock()
        self._encoded = self._first_text = self._first_audio = None

    def encoded(self) -> None:
        """The recordings are encoded."""
        self._encoded = self._elapsed()

    def end(self, stop: Stop) -> str:
        """The last pair has been pushed: what is left of the text."""
        self.reason = "length" if stop is Stop.LIMIT else "stop"
        return self._stop_texts.push(self._text.flush()) + self._stop_texts.flush()

    def text_delta(self, text: str) -> TextDelta:
        """A delta for new text."""
        if self._first_text is None:
            self._first_text = self._elapsed()
        return TextDelta(text)

    def audio_delta(self, pcm: np.ndarray) -> AudioDelta:
        """A delta for new samples."""
        if self._first_audio is None:
            self._first_audio = self._elapsed()
        return AudioDelta(pcm)

    def finish(self, streams: TokenStreams) -> FinishDelta:
        """The end, after the last text and sound; ``streams``: everything that was drawn."""
        num_text, num_speech = streams.counts(self.config)
        usage = Usage(
            prompt_tokens=self.prompt_len,
            steps=len(streams.text),
            text_tokens=num_text,
            audio_tokens=num_speech,
            cached_tokens=self.cached_tokens,
        )
        timings = Timings(self._encoded, self._first_text, self._first_audio, self._elapsed())
        return FinishDelta(self.reason, usage, timings)

    def _say_until_stopped(self, text_id: int) -> str:
        new = self._stop_texts.push(self._text.push_one(text_id))
        self.stopped = self._stop_texts.found
        return new

    def _elapsed(self) -> float:
        return self._clock() - self._added
