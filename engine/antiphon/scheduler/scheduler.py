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

from ..errors import ConfigError, InputError, PromptTooLongError
from .kv_pool import KVPools
from .page_manager import PageManager
from .plan import PAGE_SIZE, PageCopy, SequencePlan, SlotAssignment, StepPlan, StepResults
from .policy import FcfsPolicy, Policy
from .request_state import Phase, RequestState


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of a step. ``token_budget`` rows, ``max_sequences`` running requests, ``max_positions`` per request."""

    token_budget: int = 512
    max_sequences: int = 64
    max_positions: int = 8192
    prefix_caching: bool = True

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
        self.requests: dict[str, RequestState] = {}
        self.decoding: dict[str, RequestState] = {}
        self.prefilling: dict[str, RequestState] = {}
        self.waiting: list[tuple[int, float, int, RequestState]] = []
        self.num_preemptions = 0
        self._free_slots = list(range(config.max_sequences - 1, -1, -1))
        self._num_added = 0
        self._step = 0
        self._in_flight: StepPlan | None = None
        self._planned: dict[str, SequencePlan] = {}
        self._copies: list[PageCopy] = []
        self._assigned: dict[str, SlotAssignment] = {}
        self._preempted: set[str] = set()

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self.decoding) + len(self.prefilling)

    @property
    def has_work(self) -> bool:
        """Whether ``schedule`` would plan anything."""
        return bool(self.requests)

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

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None if there is nothing to do. ``now``: seconds, any origin, used by the policy only."""
        assert self._in_flight is None, "schedule was called before the last plan was committed or discarded"
        if not self.requests:
            return None
        self._step += 1
        self._preempted.clear()
        waiting = [entry[-1] for entry in self.waiting[: self.policy.waiting_window]]
        order = self.policy.order(now, self.decoding, self.prefilling, waiting, self.config.token_budget)
        self._plan_decodes(now, order.decodes)
        num_decodes = len(self._planned)
        self._plan_prefills(now, order.prefills, min(order.prefill_tokens, self.config.token_budget - num_decodes))
        if not self._planned:
            self._plan_without_policy(now)
        self._in_flight = self._build_plan()
        return self._in_flight

    def commit(self, plan: StepPlan, results: StepResults) -> list[RequestState]:
        """Apply a finished step; returns the requests that it finished, ``finish_reason`` "stop" or "length".

        Results of requests aborted meanwhile are ignored.
        """
        self._close(plan)
        rows = iter(results.rows())
        finished = []
        for sequence in plan.sequences:
            result = next(rows) if sequence.samples else None
            state = self.requests.get(sequence.request_id)
            if state is None or state.planned_step != plan.step:
                continue
            self.memory.computed(state, sequence.length)
            if result is not None and self._take_pair(state, *result):
                finished.append(state)
        assert next(rows, None) is None, "more results than sampling sequences"
        return finished

    def discard(self, plan: StepPlan) -> None:
        """The plan failed and was not run (or not completely): its requests stay as they were before it."""
        self._close(plan)
        for assignment in plan.assigned:
            state = self.requests.get(assignment.request_id)
            if state is not None and state.admitted_step == plan.step:
                self._preempt(state)

    def check(self) -> None:
        """AssertionError unless the books balance: pages, slots, queues, block tables. O(pages); for tests and idle time."""
        running = [*self.decoding.values(), *self.prefilling.values()]
        self.memory.check(running)
        slots = [state.slot for state in running]
        assert sorted(slots + self._free_slots) == list(range(self.config.max_sequences)), "a slot is lost or shared"
        queued = [entry[-1] for entry in self.waiting]
        assert {s.request_id for s in running + queued} == set(self.requests), "a request is in no queue"
        assert len(running) + len(queued) == len(self.requests), "a request is in two queues"
        assert all(s.slot < 0 and not any(s.pages) and s.phase is Phase.WAITING for s in queued)
        assert all(s.phase is Phase.DECODING for s in self.decoding.values())
        assert all(s.phase is Phase.PREFILLING for s in self.prefilling.values())

    # -- planning ------------------------------------------------------------------------------------------------

    def _plan_decodes(self, now: float, states: Iterable[RequestState]) -> None:
        budget = self.config.token_budget
        for state in list(states):
            if len(self._planned) >= budget:
                return
            if state.phase is Phase.DECODING and state.planned_step != self._step and self._make_room(now, state):
                self._plan(state, 1)

    def _make_room(self, now: float, state: RequestState) -> bool:
        """Take the page for the next position, preempting others if need be; False if ``state`` itself had to go."""
        if state.num_computed % PAGE_SIZE:
            return True
        while (group := self.memory.lacking_group(state)) is not None:
            holders = [s for s in (*self.decoding.values(), *self.prefilling.values()) if s.pages[group]]
            victim = self.policy.victim(now, holders)
            self._preempt(victim)
            if victim is state:
                return False
        self.memory.grow(state)
        return True

    def _plan_prefills(self, now: float, states: Iterable[RequestState], budget: int) -> None:
        """Chunks of prompts in the policy's order; the first request that cannot be admitted holds up those behind it."""
        blocked = False
        for state in list(states):
            if budget <= 0:
                return
            if state.phase is Phase.WAITING and state.request_id not in self._preempted:
                blocked = blocked or not self._admit(now, state)
            if state.phase is Phase.PREFILLING and state.planned_step != self._step:
                length = min(state.num_tokens - state.num_computed, budget)
                self._plan(state, length)
                budget -= length

    def _admit(self, now: float, state: RequestState) -> bool:
        """Give a waiting request a slot and its pages; running requests of lower priority make way for it."""
        while not self._try_admit(state):
            running = (*self.decoding.values(), *self.prefilling.values())
            lower = [s for s in running if s.priority > state.priority and s.admitted_step != self._step]
            if not lower or not self.memory.could_admit(state, lower):
                return False
            self._preempt(self.policy.victim(now, lower))
        return True

    def _try_admit(self, state: RequestState) -> bool:
        if not self._free_slots:
            return False
        state.slot = self._free_slots[-1]
        copies = self.memory.admit(state, headroom=self.num_running)
        if copies is None:
            state.slot = -1
            return False
        self._free_slots.pop()
        self._dequeue(state)
        state.phase = Phase.PREFILLING
        state.admitted_step = self._step
        self.prefilling[state.request_id] = state
        self._copies += copies
        self._assigned[state.request_id] = SlotAssignment(state.request_id, state.slot, state.num_generated)
        return True

    def _plan_without_policy(self, now: float) -> None:
        """A policy that let everything wait: run what is running, or admit the first in the queue."""
        self._plan_decodes(now, self.decoding.values())
        queue = [*self.prefilling.values(), *(entry[-1] for entry in self.waiting[:1])]
        self._plan_prefills(now, queue, self.config.token_budget - len(self._planned))
        assert self._planned, "requests are waiting, nothing runs, and nothing can be admitted"

    def _plan(self, state: RequestState, length: int) -> None:
        start = state.num_computed
        state.planned_step = self._step
        self._planned[state.request_id] = SequencePlan(
            state.request_id,
            state.slot,
            start,
            length,
            state.num_tokens - state.prompt_len,
            state.run_text,
            state.run_audio,
            start + length == state.num_tokens,
            self.memory.tables,
        )

    def _build_plan(self) -> StepPlan:
        sequences = tuple(self._planned.values())
        num_prefills = sum(1 for s in sequences if s.request_id in self.prefilling)
        plan = StepPlan(
            step=self._step,
            sequences=sequences,
            copies=tuple(self._copies),
            assigned=tuple(self._assigned.values()),
            block_writes=self.memory.take_writes(),
            block_tables=self.memory.tables,
            num_rows=sum(sequence.length for sequence in sequences),
            num_decodes=len(sequences) - num_prefills,
            preempted=tuple(self._preempted),
        )
        self._planned.clear()
        self._copies.clear()
        self._assigned.clear()
        return plan

    # -- results and life cycle ------------------------------------------------------------------------------------

    def _close(self, plan: StepPlan) -> None:
        assert plan is self._in_flight, "commit or discard takes the plan that the last schedule returned"
        self._in_flight = None
        self.memory.unpin()

    def _take_pair(self, state: RequestState, text: int, audio: int, text_ended: bool, finished: bool) -> bool:
        state.append(audio, text)
        if state.phase is Phase.PREFILLING:
            del self.prefilling[state.request_id]
            self.decoding[state.request_id] = state
            state.phase = Phase.DECODING
        if finished or state.num_tokens - state.prompt_len >= state.max_new_tokens:
            self._finish(state, "stop" if finished else "length")
            return True
        if text_ended and not state.text_ended:
            if not state.keep_text_pages and state.output_type == "both":
                self.memory.release_text(state)
            state.end_text()
        return False

    def _finish(self, state: RequestState, reason: str) -> None:
        self._leave(state)
        del self.requests[state.request_id]
        state.phase = Phase.FINISHED
        state.finish_reason = reason
        self.policy.forget(state.request_id)

    def _preempt(self, state: RequestState) -> None:
        self._leave(state)
        state.num_preemptions += 1
        self.num_preemptions += 1
        self._preempted.add(state.request_id)
        self._enqueue(state)

    def _leave(self, state: RequestState) -> None:
        """Take a request out of its queue and free its pages and slot, whatever its phase."""
        self._planned.pop(state.request_id, None)
        if state.phase is Phase.WAITING:
            self._dequeue(state)
            return
        del (self.decoding if state.phase is Phase.DECODING else self.prefilling)[state.request_id]
        copies_pending = self._in_flight is not None and state.admitted_step == self._in_flight.step
        self.memory.release(state, remember=not copies_pending)
        self._free_slots.append(state.slot)
        state.slot = -1

    def _enqueue(self, state: RequestState) -> None:
        state.phase = Phase.WAITING
        insort(self.waiting, (state.priority, state.arrival, state.sequence_number, state))

    def _dequeue(self, state: RequestState) -> None:
        index = bisect_left(self.waiting, (state.priority, state.arrival, state.sequence_number))
        assert self.waiting[index][-1] is state
        del self.waiting[index]
