"""Deadlines of people who listen (design.md section 2.11).

Every audio stream plays in real time, so it has a deadline: when its listener runs out of sound, or, before the first
sound, when that sound should be there. Slack is the time to the deadline less the work that is still to be done for the
next piece. Four decisions follow:

* prompts run in chunks that the stream with the least slack can afford to wait for;
* streams far ahead of playback pause while others are in need, if that makes the step shorter: on a GPU, where reading the
  weights dominates, it hardly ever does;
* speech chunks are solved by deadline, in batches that the language model's streams can wait for; while somebody waits
  for a first sound, chunks that can wait for it do;
* when pages run out, the stream with the most sound in hand gives way: it has time to be computed again.

Time alternates between the language model and speech, whatever the slack: when everybody is late, serving the latest first
makes everybody later (simulated: at 90 % load a strict order by slack left no listener without gaps).
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

    first_audio: after its arrival a request should be heard. far_ahead: a stream with more sound in hand may pause. step: a
    step with prompts in it may always take this long. speech_batch: a solve may always take this long; one chunk may take
    any time. margin: kept before a deadline. first_steps: language model steps and typical_frames: mel frames that a new
    request's first sound takes. min_prefill_tokens: prompts always advance by so much. prompt_weight: a prompt that takes a
    second to compute yields to one that takes none and came up to so many seconds later. worthwhile: pausing must shorten
    a step by this share. min_launch: so many decode steps may always follow each other, however long they take.
    """

    first_audio: float = 0.5
    far_ahead: float = 2.0
    step: float = 0.05
    speech_batch: float = 0.07
    margin: float = 0.05
    first_steps: int = 24
    typical_frames: int = 120
    min_prefill_tokens: int = 32
    prompt_weight: float = 4.0
    worthwhile: float = 0.1
    min_launch: int = 1


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
        slots = table.decoding.nonzero()[0]
        in_hand = table.play_end[slots] - now
        full = self.cost.llm_step(0, len(slots))
        if full <= self.options.step and not prefilling and not waiting:
            return StepOrder(slots[in_hand.argsort(kind="stable")], (), 0)
        patience = max(self.options.step, self._decode_slack(now, table, slots))
        if full > patience or prefilling or (waiting and table.free and not table.admission_blocked):
            near = in_hand <= self.options.far_ahead
            if self.cost.llm_step(0, int(near.sum())) < (1 - self.options.worthwhile) * full:
                slots, in_hand = slots[near], in_hand[near]
        slots = slots[np.argsort(in_hand, kind="stable")]
        queue = sorted((*prefilling, *waiting), key=lambda state: (state.priority, self._due(state)))
        return StepOrder(slots, queue, self._prefill_tokens(len(slots), patience, token_budget) if queue else 0)

    def decode_steps(self, now: float, table: SlotTable) -> int:
        """As long as a step with prompts may take, since whoever comes now waits (but ``min_launch``); and no stream's
        chunk is kept waiting."""
        slots = np.flatnonzero(table.decoding)
        missing = (table.chunk_at[slots] - table.num_tokens[slots])[table.run_audio[slots]]
        by_time = max(self.options.min_launch, int(self.options.step / self.cost.llm_step(0, len(slots))))
        return max(1, min([by_time, *missing[missing > 0].tolist()]))

    def victim(self, now: float, candidates: Sequence[RequestState]) -> RequestState:
        """Least important first; then the most sound in hand; then the latest arrival."""
        return max(candidates, key=lambda state: (state.priority, max(state.play_end - now, 0.0), *rank(state)[1:]))

    def choose_speech(
        self, now: float, jobs: Sequence[SpeechJob], table: SlotTable, oldest_prompt: float, max_batch: int
    ) -> list[SpeechJob]:
        """By deadline, as many as the language model's streams can wait for; see the module's docstring."""
        queue = sorted(jobs, key=lambda job: (job.priority, self._deadline(job)))[:max_batch]
        slots = np.flatnonzero(table.decoding)
        in_need = slots[table.play_end[slots] - now <= self.options.far_ahead]
        if not len(in_need) and oldest_prompt == math.inf:
            return queue
        unheard = oldest_prompt < math.inf or (table.play_end[in_need[table.run_audio[in_need]]] == -np.inf).any()
        if unheard and self._can_all_wait(now, queue):
            return []
        patience = 0.0 if unheard else self._decode_slack(now, table, slots)
        chosen = queue[:1]
        for job in queue[1:]:
            if self.cost.speech([*(j.frames for j in chosen), job.frames]) > max(patience, self.options.speech_batch):
                break
            chosen.append(job)
        return chosen

    def _can_all_wait(self, now: float, queue: Sequence[SpeechJob]) -> bool:
        """Whether every chunk, solved after those before it, would be in time after somebody else's first sound."""
        begin = now + self._first_sound() + self.options.margin
        frames: list[int] = []
        for job in queue:
            frames.append(job.frames)
            if job.play_end < begin + self.cost.speech(frames):
                return False
        return True

    def _decode_slack(self, now: float, table: SlotTable, slots: np.ndarray) -> float:
        """Slack of the decoding stream whose listener is most urgent; streams of text only can wait for ``step``."""
        speaking = slots[table.run_audio[slots]]
        patience = math.inf if len(speaking) == len(slots) else self.options.step
        heard = speaking[table.play_end[speaking] > -np.inf]
        if not len(heard):
            return patience
        missing = np.maximum(table.chunk_at[heard] - table.num_tokens[heard], 0)
        slack = float((table.play_end[heard] - missing * self.cost.llm_step(0, len(slots))).min()) - now
        return min(patience, slack - self.cost.speech([self.options.typical_frames]) - self.options.margin)

    def _first_sound(self) -> float:
        """Seconds from the start of a prompt to its first sound, on an idle device."""
        steps = self.options.first_steps * self.cost.llm_step(0, 1)
        return steps + self.cost.speech([self.options.typical_frames])

    def _deadline(self, job: SpeechJob) -> float:
        return job.play_end if job.play_end > -math.inf else job.arrival + self.options.first_audio

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
