"""How long work takes, as far as a policy needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class CostModel(Protocol):
    """Seconds of work on the device that serves. Must not decrease with any argument."""

    def llm_step(self, prefill_tokens: int, decode_rows: int) -> float:
        """One ragged step of the language model."""

    def speech(self, frames: Sequence[int]) -> float:
        """One batched flow-matching solve and vocoder pass over chunks of so many mel frames, look-ahead included."""


@dataclass
class LinearCostModel:
    """A fixed part and a part per row, both scaled to what was observed.

    The defaults are a GPU's: reading the weights dominates a decode step, arithmetic dominates prompts and speech. After a
    few steps of ``observe_*`` only their proportions matter.
    """

    step_base: float = 6e-3
    prefill_token: float = 30e-6
    decode_row: float = 20e-6
    speech_base: float = 20e-3
    speech_frame: float = 0.15e-3
    llm_scale: float = 1.0
    speech_scale: float = 1.0
    smoothing: float = 0.1

    def llm_step(self, prefill_tokens: int, decode_rows: int) -> float:
        rows = self.prefill_token * prefill_tokens + self.decode_row * decode_rows
        return self.llm_scale * (self.step_base + rows)

    def speech(self, frames: Sequence[int]) -> float:
        return self.speech_scale * (self.speech_base + self.speech_frame * sum(frames))

    def observe_llm_step(self, prefill_tokens: int, decode_rows: int, seconds: float) -> None:
        """A step took so long."""
        ratio = seconds / self.llm_step(prefill_tokens, decode_rows)
        self.llm_scale *= 1 + self.smoothing * (_clip(ratio) - 1)

    def observe_speech(self, frames: Sequence[int], seconds: float) -> None:
        """A solve took so long."""
        ratio = seconds / self.speech(frames)
        self.speech_scale *= 1 + self.smoothing * (_clip(ratio) - 1)


def _clip(ratio: float) -> float:
    """One outlier, such as a first call that compiles, must not throw the model off."""
    return min(max(ratio, 0.1), 10.0)
