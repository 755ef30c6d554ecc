"""Who goes first. Pure decisions over request states, an injected clock and an injected cost model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .request_state import RequestState
from .slot_table import MAX_LAUNCH, SlotTable


class StepOrder(NamedTuple):
    """What a policy wants of a step.

    ``decodes``: slots of decoding requests that take one row each, int64, most important first; the others pause.
    ``prefills``: admitted and waiting requests in the order in which they get prompt rows. ``prefill_tokens``: at most so
    many prompt rows.
    """

    decodes: np.ndarray
    prefills: Iterable[RequestState]
    prefill_tokens: int


class SpeechJob(NamedTuple):
    """A chunk of speech tokens that is ready to become sound.

    ``frames``: mel frames to solve, look-ahead included. ``play_end``: when the stream's listener runs out of sound, -inf if
    nothing was handed out yet. ``arrival``, ``priority``: of the request.
    """

    request_id: str
    frames: int
    play_end: float
    arrival: float
    priority: int = 0


class Policy(Protocol):
    """Decides order and victims; the scheduler guarantees that whatever it decides, all work gets done."""

    waiting_window: int
    """How many requests at the head of the queue ``order`` gets to see."""

    def order(
        self,
        now: float,
        table: SlotTable,
        prefilling: Sequence[RequestState],
        waiting: Sequence[RequestState],
        token_budget: int,
    ) -> StepOrder:
        """Order of this step. ``table`` knows the decoding requests; ``waiting`` is sorted by (priority, arrival)."""

    def decode_steps(self, now: float, table: SlotTable) -> int:
        """Decode steps that may run in a row before anybody new is looked at; asked while everybody decodes."""

    def victim(self, now: float, candidates: Sequence[RequestState]) -> RequestState:
        """Which of the candidates loses its pages when a group has run out."""

    def choose_speech(
        self, now: float, jobs: Sequence[SpeechJob], table: SlotTable, oldest_prompt: float, max_batch: int
    ) -> list[SpeechJob]:
        """The chunks to solve together now, at most ``max_batch``; none if the language model is more urgent.

        ``oldest_prompt``: arrival of the oldest request whose prompt is not computed yet, inf if there is none. While the
        language model has nothing to do, at least one job must be chosen.
        """


def rank(state: RequestState) -> tuple[int, float, int]:
    """The order of first come, first served within a priority; unique."""
    return (state.priority, state.arrival, state.sequence_number)


class FcfsPolicy:
    """First come, first served: everybody decodes, prompts in order of arrival, the latest arrival loses its pages."""

    waiting_window = 64

    def order(
        self,
        now: float,
        table: SlotTable,
        prefilling: Sequence[RequestState],
        waiting: Sequence[RequestState],
        token_budget: int,
    ) -> StepOrder:
        return StepOrder(table.decoding.nonzero()[0], (*prefilling, *waiting), token_budget)

    def decode_steps(self, now: float, table: SlotTable) -> int:
        return MAX_LAUNCH

    def victim(self, now: float, candidates: Sequence[RequestState]) -> RequestState:
        return max(candidates, key=rank)

    def choose_speech(
        self, now: float, jobs: Sequence[SpeechJob], table: SlotTable, oldest_prompt: float, max_batch: int
    ) -> list[SpeechJob]:
        return sorted(jobs, key=lambda job: (job.priority, job.arrival))[:max_batch]
