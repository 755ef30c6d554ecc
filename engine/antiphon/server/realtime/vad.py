"""Voice activity: Silero's network, and the rules that turn its probabilities into turns."""

from __future__ import annotations

import threading
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

WINDOW, CONTEXT = 512, 64
WINDOW_MS = 32.0
HYSTERESIS = 0.15
WINDOWS_TO_START = 2
"""Speech begins with this many windows in a row, so that a click is no turn."""


@cache
def _network():
    """Silero VAD (ONNX, from the ``silero-vad`` package) on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = resources.files("silero_vad.data") / "silero_vad.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


_LOADING = threading.Lock()


class SileroVad:
    """Probability of speech per 32 ms of a 16 kHz stream."""

    def __init__(self) -> None:
        with _LOADING:
            self._run = _network().run
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros((1, CONTEXT), np.float32)

    def __call__(self, window: np.ndarray) -> float:
        """Probability for the next ``WINDOW`` samples, float32 [512]."""
        x = np.concatenate((self._context, window[None]), axis=1)
        inputs = {"input": x, "state": self._state, "sr": np.array(16000, np.int64)}
        probability, self._state = self._run(None, inputs)
        self._context = x[:, -CONTEXT:]
        return float(probability[0, 0])


class VadOptions(NamedTuple):
    """OpenAI's ``server_vad``."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


class Turn(NamedTuple):
    """Speech began (``end_ms`` None) or ended; milliseconds since the session began, padding included."""

    start_ms: float
    end_ms: float | None = None


class TurnDetector:
    """Cuts a stream into turns. ``probability``: of the next window; default: Silero."""

    def __init__(self, options: VadOptions, now_ms: float = 0.0, probability=None):
        self.options = options
        self.probability = SileroVad() if probability is None else probability
        self.start_ms: float | None = None
        self._now = self._first = now_ms
        self._loud = 0
        self._silent_since: float | None = None
        self._rest = np.zeros(0, np.float32)

    @property
    def speaking(self) -> bool:
        return self.start_ms is not None

    @property
    def needed_from_ms(self) -> float:
        """Sound before this can no longer become part of a turn."""
        return self._now - self.options.prefix_padding_ms - WINDOWS_TO_START * WINDOW_MS

    def push(self, samples: np.ndarray) -> list[Turn]:
        """More of the stream, float32 [n] at 16 kHz. Blocks: call it in an executor."""
        self._rest = np.concatenate((self._rest, samples.astype(np.float32)))
        turns = []
        for at in range(0, len(self._rest) - WINDOW + 1, WINDOW):
            turn = self._step(self.probability(self._rest[at : at + WINDOW]))
            turns += [turn] if turn else []
        self._rest = self._rest[len(self._rest) // WINDOW * WINDOW :]
        return turns

    def _step(self, probability: float) -> Turn | None:
        self._now += WINDOW_MS
        if self.start_ms is None:
            self._loud = self._loud + 1 if probability >= self.options.threshold else 0
            if self._loud < WINDOWS_TO_START:
                return None
            begun = self._now - self._loud * WINDOW_MS - self.options.prefix_padding_ms
            self.start_ms, self._silent_since, self._loud = max(self._first, begun), None, 0
            return Turn(self.start_ms)
        if probability >= self.options.threshold - HYSTERESIS:
            self._silent_since = None
            return None
        self._silent_since = self._now - WINDOW_MS if self._silent_since is None else self._silent_since
        if self._now - self._silent_since < self.options.silence_duration_ms:
            return None
        turn = Turn(self.start_ms, self._now)
        self.end_turn()
        return turn

    def end_turn(self) -> None:
        """The turn is over, whatever is being said."""
        self.start_ms, self._silent_since, self._first = None, None, self._now
