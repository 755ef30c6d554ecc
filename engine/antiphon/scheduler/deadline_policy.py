"""Deadlines of people who listen (design.md section 2.11).

Every audio stream plays in real time. Its slack is how long its listener can be left alone. The order of everything is:
first sound of new requests, then streams by slack. From this follow the four decisions:

* prompts run in chunks that the stream with the least slack can afford to wait for;
* streams far ahead of playback pause while a prompt is being computed, or when a full step would take longer than the
  most urgent stream can wait;
* speech chunks are solved by deadline, in batches short enough that the language model does not stall for long, unless
  nobody but them is waiting;
* when pages run out, the stream with the most sound in hand gives way: it has time to be computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .cost_model import CostModel, LinearCostModel
from .policy import SpeechJob, StepOrder, rank
from .request_state import RequestState
from .slot_table import SlotTable


@dataclass(frozen=True)
class DeadlineOptions:
    """Times in seconds.

    far_ahead: a stream with more sound in hand may pause. step: a step with prompts in it may always take this long.
    margin: kept between a piece's predicted arrival and its deadline. speech_batch: a solve may always take this long.
    min_prefill_tokens: prompts always advance by so much. prompt_weight: a prompt that takes a second to compute yields
    to one that takes none and came up to so many seconds later.
    """

    far_ahead: float = 2.0
    step: float = 0.05
    margin: float = 0.1
    speech_batch: float = 0.1
    min_prefill_tokens: int = 32
    prompt_weight: float = 4.0


class DeadlinePolicy:
    """Stateless but for its cost model; see the module's docstring."""

    waiting_window = 64

    def __init__(self, options: DeadlineOptions = DeadlineOptions(), cost: CostModel | None = None):
        self.options = options
        self.cost = cost if cost is not None else LinearCostModel()

    def order(
        self,
        now: float,
        table: SlotTable,
        prefilling: Sequence[RequestState],
        waiting: Sequence[RequestState],
        token_budget: int,
    ) -> StepOrder:
        slots = np.flatnonzero(table.decoding)
        slack = table.play_end[slots] - now
        patience = self._patience(slack)
        prompts = bool(prefilling) or (bool(waiting) and bool(table.free) and not table.admission_blocked)
        if prompts or (len(slots) and self.cost.llm_step(0, len(slots)) > patience):
            ahead = slack > self.options.far_ahead
            if ahead.any():
                slots, slack = slots[~ahead], slack[~ahead]
        slots = slots[np.argsort(slack, kind="stable")]
        queue = sorted((*prefilling, *waiting), key=lambda state: (state.priority, self._due(state)))
        return StepOrder(slots, queue, self._prefill_tokens(len(slots), patience, token_budget) if queue else 0)

    def victim(self, now: float, candidates: Sequence[RequestState]) -> RequestState:
        """Least important first; then the most sound in hand; then the latest arrival."""
        return max(candidates, key=lambda state: (state.priority, max(state.play_end - now, 0.0), *rank(state)[1:]))

    def choose_speech(
        self, now: float, jobs: Sequence[SpeechJob], others_wait: bool, max_batch: int
    ) -> list[SpeechJob]:
        """By deadline; a batch ends where it would take longer than ``speech_batch`` and the next job can wait."""
        queue = sorted(jobs, key=lambda job: (job.priority, job.play_end, job.arrival))[:max_batch]
        chosen: list[SpeechJob] = []
        for job in queue:
            cost = self.cost.speech([*(j.frames for j in chosen), job.frames])
            can_wait = job.play_end - now > cost + self.options.margin + self.options.step
            if chosen and others_wait and can_wait and cost > self.options.speech_batch:
                break
            chosen.append(job)
        return chosen

    def _patience(self, slack: np.ndarray) -> float:
        """How long this step may take: what the most urgent stream that is playing can wait, but at least ``step``."""
        playing = slack[slack > -math.inf]
        least = float(playing.min()) - self.options.margin if len(playing) else math.inf
        return max(self.options.step, least)

    def _prefill_tokens(self, decode_rows: int, patience: float, token_budget: int) -> int:
        """The most prompt rows that keep the step within ``patience``, by halving."""
        tokens = token_budget - decode_rows
        while tokens > self.options.min_prefill_tokens and self.cost.llm_step(tokens, decode_rows) > patience:
            tokens //= 2
        return tokens

    def _due(self, state: RequestState) -> tuple[float, int]:
        """When this prompt should be through.

        A new request wants to be heard at once, but a long prompt lets short ones pass. A preempted stream must be back
        before its listener runs out.
        """
        seconds = self.cost.llm_step(state.num_tokens - state.num_computed, 0)
        if state.play_end > -math.inf:
            return state.play_end - seconds - self.options.margin, state.sequence_number
        return state.arrival + self.options.prompt_weight * seconds, state.sequence_number
