"""Continuous batching: which rows of which requests run in the next step, and what a finished step changes.

One ragged step mixes one row of every decoding request with chunks of prompts, up to a token budget. A request is
admitted when the pools can hold its whole tape; it grows page by page while it decodes. When a group runs out, the policy
names a victim, whose pages are given back and whose prompt and generated tokens are computed again later: the tokens
that follow are the same. What runs first is the policy's business; that nothing is lost, leaked or forgotten is ours.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError, InputError, PromptTooLongError
from .kv_pool import KVPools
from .page_manager import PageManager
from .plan import PageCopy, SlotAssignment, StepPlan, StepResults
from .policy import FcfsPolicy, Policy
from .request_state import Phase, RequestState
from .slot_table import MAX_LAUNCH, SlotTable


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of a step. ``token_budget`` rows, ``max_sequences`` running requests, ``max_positions`` per request.

    ``shorter_launches``: a plan of several steps may have fewer than asked for; else it has all of them or one.
    """

    token_budget: int = 512
    max_sequences: int = 64
    max_positions: int = 8192
    prefix_caching: bool = True
    shorter_launches: bool = False

    def __post_init__(self) -> None:
        if self.max_sequences < 1 or self.max_positions < 2:
            raise ConfigError(f"max_sequences must be >= 1 and max_positions >= 2, got {self}")
        if self.token_budget < self.max_sequences:
            raise ConfigError(
                f"token_budget {self.token_budget} is below max_sequences {self.max_sequences}: "
                "every running request needs room for one row in a step"
            )


class Scheduler:
    """``add`` requests, then repeat ``plan = schedule(now)``, run it, ``commit(plan, results)``.

    One plan is in flight at a time. ``abort`` may come at any moment, also while a plan is in flight.
    """

    def __init__(self, config: SchedulerConfig, pools: KVPools, policy: Policy | None = None):
        self.config = config
        self.policy = policy if policy is not None else FcfsPolicy()
        self.memory = PageManager(pools, config.max_sequences, config.max_positions, config.prefix_caching)
        self.table = SlotTable(config.max_sequences)
        self.requests: dict[str, RequestState] = {}
        self.prefilling: dict[str, RequestState] = {}
        self.waiting: list[tuple[int, float, int, RequestState]] = []
        self.num_preemptions = 0
        self._num_added = 0
        self._step = 0
        self._in_flight: StepPlan | None = None
        self._decodes = np.empty(0, np.int64)
        self._chunks: dict[str, tuple[RequestState, int]] = {}
        self._copies: list[PageCopy] = []
        self._assigned: dict[str, SlotAssignment] = {}
        self._preempted: dict[str, None] = {}

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return self.config.max_sequences - len(self.table.free)

    @property
    def running(self) -> list[RequestState]:
        """Requests that hold a slot."""
        return [state for state in self.table.states if state is not None]

    def add(self, state: RequestState) -> RequestState:
        """Queue a request.

        ``max_new_tokens`` is lowered to what the model's context and the pools hold (it then finishes with "length").

        Raises:
            InputError: the id is in use.
            PromptTooLongError: not even one token fits behind the prompt.
        """
        if state.request_id in self.requests:
            raise InputError(f"request id {state.request_id!r} is already in use")
        capacity = min(self.memory.capacity(state), self.config.max_positions)
        if state.prompt_len > capacity:
            raise PromptTooLongError(
                f"the prompt has {state.prompt_len} positions; with the configured context and KV pages a request "
                f"of output type {state.output_type!r} can hold {capacity}"
            )
        state.max_new_tokens = min(state.max_new_tokens, capacity - state.prompt_len + 1)
        self._num_added += 1
        state.sequence_number = self._num_added
        self.requests[state.request_id] = state
        self._enqueue(state)
        return state

    def abort(self, request_id: str, reason: str = "abort") -> RequestState | None:
        """End a request now, at any stage, and free everything it holds; None if the id is unknown (already finished)."""
        state = self.requests.get(request_id)
        if state is not None:
            self._finish(state, reason)
        return state

    def set_playback(self, request_id: str, play_end: float, chunk_steps: int) -> None:
        """Tell the policy about a listener; unknown (finished) ids are ignored.

        Args:
            play_end: when the listener runs out of sound; -inf before the first sound.
            chunk_steps: ``num_generated`` at which the request's next speech chunk is complete, delay included.
        """
        state = self.requests.get(request_id)
        if state is not None:
            state.play_end = play_end
            state.chunk_at = state.prompt_len + chunk_steps
            if state.slot >= 0:
                self.table.copy_playback(state)

    def schedule(self, now: float, max_steps: int = 1) -> StepPlan | None:
        """The next step, or None if there is nothing to do. ``now``: seconds, any origin, used by the policy only.

        With ``max_steps`` > 1 (at most ``MAX_LAUNCH``) the plan may stand for so many decode steps in a row, ``plan.steps``:
        if nobody waits for a prompt, everybody decodes, the policy has no objection, and there are pages for all of them.
        """
        assert self._in_flight is None, "schedule was called before the last plan was committed or discarded"
        if not self.requests:
            return None
        self._step += 1
        self._preempted.clear()
        waiting = [entry[-1] for entry in self.waiting[: self.policy.waiting_window]]
        order = self.policy.order(now, self.table, list(self.prefilling.values()), waiting, self.config.token_budget)
        self._plan_decodes(now, order.decodes)
        self._plan_prefills(
            now, order.prefills, min(order.prefill_tokens, self.config.token_budget - len(self._decodes))
        )
        if not len(self._decodes) and not self._chunks:
            self._plan_without_policy(now)
        self._in_flight = self._build_plan(self._launch_steps(now, max_steps))
        return self._in_flight

    def commit(self, plan: StepPlan, results: StepResults) -> list[RequestState]:
        """Apply a finished step; returns the requests that it finished, ``finish_reason`` "stop" or "length".

        Results of requests aborted meanwhile are ignored. A plan of several steps: :meth:`commit_next` takes the others.
        """
        self._close(plan)
        for state, length in self._planned_prefills(plan):
            state.num_computed += length
            self.memory.register(state, state.num_computed)
            if state.num_computed == state.num_tokens:
                del self.prefilling[state.request_id]
                state.phase = Phase.DECODING
                self.table.start_decoding(state)
        return self.commit_next(plan.slots[plan.samples], results)

    def commit_next(self, slots: np.ndarray, results: StepResults) -> list[RequestState]:
        """One more step of the plan that was committed last: a pair for each of ``slots``; of those that ended, none counts."""
        columns = results.columns()
        if len(columns[0]) != len(slots):
            raise ValueError(f"{len(columns[0])} results for {len(slots)} sampling sequences")
        alive = self.table.decoding[slots]
        if not alive.all():
            slots, columns = slots[alive], tuple(column[alive] for column in columns)
        return self._take_pairs(slots, *columns)

    def discard(self, plan: StepPlan) -> None:
        """The plan failed and was not run (or not completely): its requests stay as they were before it."""
        self._close(plan)
        for assignment in plan.assigned:
            state = self.requests.get(assignment.request_id)
            if state is not None and state.admitted_step == plan.step:
                self._preempt(state, remember=False)

    def check(self) -> None:
        """AssertionError unless the books balance: pages, slots, queues, block tables. O(pages); for tests and idle time."""
        running, table = self.running, self.table
        self.memory.check(running)
        assert sorted([s.slot for s in running] + table.free) == list(range(self.config.max_sequences)), (
            "a slot is lost"
        )
        assert all(table.states[state.slot] is state for state in running)
        queued = [entry[-1] for entry in self.waiting]
        assert {s.request_id for s in running + queued} == set(self.requests), "a request is in no queue"
        assert len(running) + len(queued) == len(self.requests), "a request is in two queues"
        assert all(s.slot < 0 and not any(s.pages) and s.phase is Phase.WAITING for s in queued)
        for state in running:
            assert (state.phase is Phase.PREFILLING) == (state.request_id in self.prefilling)
            assert (state.phase is Phase.DECODING) == table.decoding[state.slot] == (state.table is table)
        assert table.decoding.sum() + len(self.prefilling) == len(running)

    # -- planning ------------------------------------------------------------------------------------------------

    def _plan_decodes(self, now: float, slots: np.ndarray) -> None:
        """Every slot that opens a page gets it, in the policy's order; whoever is preempted on the way drops out."""
        self._decodes = slots
        turning = self.table.opening_page(slots)
        if not len(turning):
            return
        for slot in self.table.with_full_ring(turning).tolist():
            self._empty_ring(self.table.states[slot])
        if self.memory.open_pages(turning, self.table):
            return
        for slot in turning.tolist():
            if self.table.decoding[slot]:
                self._turn_page(now, self.table.states[slot])
        self._decodes = slots[self.table.decoding[slots]]

    def _launch_steps(self, now: float, max_steps: int) -> int:
        """How many decode steps follow each other without the host; their pages are then there."""
        assert max_steps <= MAX_LAUNCH
        table = self.table
        if max_steps == 1 or self._chunks or self.waiting or self.prefilling:
            return 1
        if len(self._decodes) < table.decoding.sum():
            return 1
        steps = min(max_steps, self.policy.decode_steps(now, table))
        if steps < max_steps and not (self.config.shorter_launches and steps > 1):
            return 1
        turning = table.opening_page(self._decodes, steps)
        for slot in table.with_full_ring(turning).tolist():
            self._empty_ring(table.states[slot])
        return steps if self.memory.open_pages(turning, table, steps - 1) else 1

    def _empty_ring(self, state: RequestState) -> None:
        """What is in the ring moves to the tape and becomes shareable."""
        self.table.sync(state)
        self.memory.register(state, state.num_computed)

    def _turn_page(self, now: float, state: RequestState) -> None:
        """Take the next page for a request, preempting others, or the request itself, if need be."""
        while (group := self.memory.open_page(state)) is not None:
            holders = np.flatnonzero(self.memory.blocks.counts[group]).tolist()
            victim = self.policy.victim(now, [self.table.states[slot] for slot in holders])
            self._preempt(victim)
            if victim is state:
                return

    def _plan_prefills(self, now: float, states: Iterable[RequestState], budget: int) -> None:
        """Chunks of prompts in the policy's order; the first request that cannot be admitted holds up those behind it."""
        blocked = self.table.admission_blocked = False
        for state in states:
            if budget <= 0:
                return
            if state.phase is Phase.WAITING and state.request_id not in self._preempted:
                blocked = self.table.admission_blocked = blocked or not self._admit(now, state)
            if state.phase is Phase.PREFILLING:
                length = min(state.num_tokens - state.num_computed, budget)
                self._chunks[state.request_id] = (state, length)
                budget -= length

    def _admit(self, now: float, state: RequestState) -> bool:
        """Give a waiting request a slot and its pages; running requests of lower priority make way for it."""
        while not self._try_admit(state):
            lower = [s for s in self.running if s.priority > state.priority and s.admitted_step != self._step]
            if not lower or not self.memory.could_admit(state, lower):
                return False
            self._preempt(self.policy.victim(now, lower))
        return True

    def _try_admit(self, state: RequestState) -> bool:
        if not self.table.free:
            return False
        headroom = self.num_running
        self.table.take(state)
        copies = self.memory.admit(state, headroom)
        if copies is None:
            self.table.give_back(state)
            return False
        self._dequeue(state)
        state.phase = Phase.PREFILLING
        state.admitted_step = self._step
        self.prefilling[state.request_id] = state
        self._copies += copies
        self._assigned[state.request_id] = SlotAssignment(state.request_id, state.slot, state.num_generated)
        return True

    def _plan_without_policy(self, now: float) -> None:
        """A policy that let everything wait: run what is running, or admit the first in the queue."""
        self._plan_decodes(now, np.flatnonzero(self.table.decoding))
        queue = [*self.prefilling.values(), *(entry[-1] for entry in self.waiting[:1])]
        self._plan_prefills(now, queue, self.config.token_budget - len(self._decodes))
        assert len(self._decodes) or self._chunks, "requests wait, nothing runs, and nothing can be admitted"

    def _build_plan(self, steps: int) -> StepPlan:
        table = self.table
        decodes = self._decodes[table.decoding[self._decodes]] if self._preempted else self._decodes
        chunks = self._chunks.values()
        starts, prompt_len = table.num_tokens[decodes] - 1, table.prompt_len[decodes]
        text, audio, samples = table.run_text[decodes], table.run_audio[decodes], np.ones(len(decodes), bool)
        columns = [decodes, starts, np.ones_like(starts), starts + 1 - prompt_len, text, audio, samples]
        if chunks:
            rows = zip(*(_chunk_row(state, length) for state, length in chunks))
            columns = [np.concatenate([column, np.array(row, column.dtype)]) for column, row in zip(columns, rows)]
        slots, starts, lengths, num_generated, run_text, run_audio, samples = columns
        plan = StepPlan(
            step=self._step,
            request_ids=tuple(table.request_ids[slots].tolist()),
            slots=slots,
            starts=starts,
            lengths=lengths,
            num_generated=num_generated,
            run_text=run_text,
            run_audio=run_audio,
            samples=samples,
            num_decodes=len(decodes),
            num_rows=len(decodes) + sum(length for _, length in chunks),
            copies=tuple(self._copies),
            assigned=tuple(self._assigned.values()),
            table_writes=self.memory.blocks.take_writes(),
            block_tables=self.memory.tables,
            preempted=tuple(self._preempted),
            steps=steps,
        )
        self._chunks.clear()
        self._copies.clear()
        self._assigned.clear()
        return plan

    # -- results and life cycle ------------------------------------------------------------------------------------

    def _close(self, plan: StepPlan) -> None:
        assert plan is self._in_flight, "commit or discard takes the plan that the last schedule returned"
        self._in_flight = None
        self.memory.unpin()

    def _planned_prefills(self, plan: StepPlan) -> list[tuple[RequestState, int]]:
        """The plan's prompt chunks whose requests still exist."""
        if len(plan.request_ids) == plan.num_decodes:
            return []
        rows = zip(plan.request_ids[plan.num_decodes :], plan.lengths[plan.num_decodes :].tolist())
        return [(self.prefilling[name], length) for name, length in rows if name in self.prefilling]

    def _take_pairs(
        self, slots: np.ndarray, text: np.ndarray, audio: np.ndarray, text_ended: np.ndarray, finished: np.ndarray
    ) -> list[RequestState]:
        table = self.table
        table.append(slots, text, audio)
        if text_ended.any():
            for slot in slots[text_ended & ~finished & ~table.text_ended[slots]].tolist():
                self._end_text(table.states[slot])
        done = finished | (table.num_tokens[slots] >= table.max_tokens[slots])
        if not done.any():
            return []
        states = [table.states[slot] for slot in slots[done].tolist()]
        for state, stopped in zip(states, finished[done].tolist()):
            self._finish(state, "stop" if stopped else "length")
        return states

    def _end_text(self, state: RequestState) -> None:
        if state.output_type == "both" and not state.keep_text_pages:
            self.memory.release_text(state)
        state.end_text()
        self.table.copy_flags(state)

    def _finish(self, state: RequestState, reason: str) -> None:
        self._leave(state)
        del self.requests[state.request_id]
        state.phase = Phase.FINISHED
        state.finish_reason = reason

    def _preempt(self, state: RequestState, remember: bool = True) -> None:
        self._leave(state, remember)
        state.num_preemptions += 1
        self.num_preemptions += 1
        self._preempted[state.request_id] = None
        self._enqueue(state)

    def _leave(self, state: RequestState, remember: bool = True) -> None:
        """Take a request out of its queue and free its pages and slot, whatever its phase."""
        if state.phase is Phase.WAITING:
            self._dequeue(state)
            return
        self._chunks.pop(state.request_id, None)
        self.prefilling.pop(state.request_id, None)
        copies_pending = self._in_flight is not None and state.admitted_step == self._in_flight.step
        self.memory.release(state, remember and not copies_pending)
        self.table.give_back(state)
        state.num_computed = 0

    def _enqueue(self, state: RequestState) -> None:
        state.phase = Phase.WAITING
        insort(self.waiting, (state.priority, state.arrival, state.sequence_number, state))

    def _dequeue(self, state: RequestState) -> None:
        index = bisect_left(self.waiting, (state.priority, state.arrival, state.sequence_number))
        assert self.waiting[index][-1] is state
        del self.waiting[index]


def _chunk_row(state: RequestState, length: int) -> tuple[int, int, int, int, bool, bool, bool]:
    """The plan columns of a prompt chunk."""
    start, total = state.num_computed, state.num_tokens
    samples = start + length == total
    return state.slot, start, length, total - state.prompt_len, state.run_text, state.run_audio, samples
