"""Whatever happens, in whatever order: same tokens as alone, no page lost, nobody forgotten.

The model (``content_model``) makes every token depend on every cached number that the request can see, in three
groups. Free pages are overwritten after every step.
"""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from antiphon.scheduler import (
    DeadlinePolicy,
    FcfsPolicy,
    FeatureSpan,
    KVPools,
    Phase,
    RequestState,
    Scheduler,
    SchedulerConfig,
)
from antiphon.scheduler.content_model import ContentModel, alone

OPERATIONS = int(os.environ.get("ANTIPHON_TEST_STATE_MACHINE_OPERATIONS", "10000"))
RUNS = 60
STEPS_PER_RUN = 110
PIECES = 5


def conversation(piece_sizes: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, list[FeatureSpan]]:
    """A prompt from a few pieces, so that prompts share prefixes of many lengths; piece 3 and 4 differ only in sound."""
    audio, text, spans = [], [], []
    for piece, size in piece_sizes:
        if piece >= 3:
            spans.append(FeatureSpan(len(audio), size, b"recording %d" % piece))
        kind = min(piece, 3)
        audio += [100 * kind + i % 7 for i in range(size)]
        text += [100 * kind + i % 5 for i in range(size)]
    return np.array(audio), np.array(text), spans


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, steps, cancellations (also mid-step), failures and idle times on a small machine."""

    operations = 0

    @initialize(
        trunk=st.integers(8, 40),
        text=st.integers(8, 40),
        audio=st.integers(8, 40),
        sequences=st.integers(1, 6),
        extra_budget=st.integers(0, 60),
        caching=st.booleans() | st.just(True),
        policy=st.sampled_from([FcfsPolicy, DeadlinePolicy]),
    )
    def build(
        self, trunk: int, text: int, audio: int, sequences: int, extra_budget: int, caching: bool, policy
    ) -> None:
        config = SchedulerConfig(sequences + extra_budget, sequences, 400, caching)
        self.scheduler = Scheduler(config, KVPools(trunk, text, audio), policy())
        self.seeds: dict[str, int] = {}
        self.model = ContentModel(self.scheduler, self.seeds)
        self.expected: dict[str, tuple[list[int], list[int], str]] = {}
        self.now = 0.0
        self.history: list[RequestState] = []

    @rule(
        pieces=st.lists(
            st.tuples(st.integers(0, PIECES - 1), st.sampled_from([1, 5, 15, 16, 17, 24])), min_size=1, max_size=4
        ),
        output_type=st.sampled_from(["text", "both"]),
        limit=st.integers(1, 40),
        priority=st.sampled_from([0, 0, 0, 1]),
        keep_text=st.booleans(),
        salt=st.sampled_from([b"", b"", b"", b"other"]),
    )
    def add(self, pieces, output_type, limit, priority, keep_text, salt) -> None:
        audio, text, spans = conversation(pieces)
        self._add(audio, text, spans, output_type, limit, priority, keep_text, salt)

    @precondition(lambda self: self.history)
    @rule(
        data=st.data(), output_type=st.sampled_from(["text", "both"]), limit=st.integers(1, 20), cut=st.integers(0, 3)
    )
    def next_turn(self, data, output_type, limit, cut) -> None:
        """Continue a finished conversation from its token streams, or an earlier point of it."""
        before = data.draw(st.sampled_from(self.history[-4:]))
        rows = before.rows(0, before.num_tokens - min(cut, before.num_generated))
        question = np.arange(7) + 300
        audio, text = np.concatenate([rows[:, 0], question]), np.concatenate([rows[:, 1], question])
        self._add(audio, text, before.spans, output_type, limit, 0, False, b"")

    def _add(self, audio, text, spans, output_type, limit, priority, keep_text, salt) -> None:
        name = f"r{len(self.seeds)}"
        state = SpannedState(
            name, audio, text, features=spans, output_type=output_type, max_new_tokens=limit, priority=priority,
            arrival=self.now, keep_text_pages=keep_text, cache_salt=salt,
        )  # fmt: skip
        state.spans = spans
        if state.prompt_len > min(self.scheduler.memory.capacity(state), 400):
            return
        type(self).operations += 1
        self.scheduler.add(state)
        self.seeds[name] = 7 * len(self.seeds) + 1
        self.expected[name] = alone(state, self.seeds[name])

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self._step()

    @rule(data=st.data(), before_run=st.booleans())
    def step_with_abort_in_flight(self, data, before_run) -> None:
        type(self).operations += 1
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            return
        victim = data.draw(st.sampled_from(sorted(self.scheduler.requests)))
        if before_run:
            self._abort(victim)
        results = self.model.run(plan)
        if not before_run:
            self._abort(victim)
        self._commit(plan, results)

    @rule(data=st.data(), with_abort=st.booleans())
    def failed_step(self, data, with_abort) -> None:
        """The runner gives up before it did anything but noting the block tables."""
        type(self).operations += 1
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            return
        self.model.note_block_writes(plan)
        if with_abort:
            self._abort(data.draw(st.sampled_from(sorted(self.scheduler.requests))))
        self.scheduler.discard(plan)
        self.model.poison_free_pages()

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def abort(self, data) -> None:
        self._abort(data.draw(st.sampled_from(sorted(self.scheduler.requests))))

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data(), seconds=st.floats(0.1, 20), chunk_steps=st.integers(1, 60))
    def emit_sound(self, data, seconds: float, chunk_steps: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.scheduler.requests)))
        self.scheduler.set_playback(name, self.now + seconds, chunk_steps)

    @rule()
    def clear_cache(self) -> None:
        self.scheduler.memory.cache.clear()

    def _abort(self, name: str) -> None:
        type(self).operations += 1
        state = self.scheduler.abort(name)
        assert state.phase is Phase.FINISHED and not any(state.pages) and state.slot == -1
        assert self.scheduler.abort(name) is None

    def _step(self) -> None:
        type(self).operations += 1
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            assert not self.scheduler.requests
            return
        self._commit(plan, self.model.run(plan))

    def _commit(self, plan, results) -> None:
        type(self).operations += 1
        assert plan.sequences and plan.num_rows <= self.scheduler.config.token_budget
        for state in self.scheduler.commit(plan, results):
            self._check_finished(state)
        self.now += 0.01
        self.model.poison_free_pages()

    def _check_finished(self, state: RequestState) -> None:
        texts, audios, reason = self.expected[state.request_id]
        assert state.generated_text.tolist() == texts
        assert state.generated_audio.tolist() == audios
        assert state.finish_reason == reason
        self.history.append(state)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            for state in self.scheduler.running:
                if state.phase is Phase.PREFILLING:
                    continue
                if state.output_type == "text":
                    assert not state.pages[2], "a text-only request holds audio pages"
                elif state.text_ended and not state.keep_text_pages:
                    assert not state.pages[1], "text pages outlive the text stream"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        bound = 20 * sum(s.num_pages_needed * 16 + s.max_new_tokens for s in self.scheduler.requests.values()) + 10
        for _ in range(bound):
            if not self.scheduler.requests:
                break
            self._step()
        assert not self.scheduler.requests, "a request starves"
        self.scheduler.check()
        for pool in self.scheduler.memory.pools.groups:
            assert pool.num_used == 0 and pool.num_free + pool.num_cached == pool.num_pages


class SpannedState(RequestState):
    """Remembers its feature spans, for the next turn."""

    __slots__ = ("spans",)


SchedulerMachine.TestCase.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS_PER_RUN,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestSchedulerMachine(SchedulerMachine.TestCase):
    """Runs the machine until 10 000 operations are done (adds, schedules, commits, aborts)."""

    def runTest(self) -> None:
        SchedulerMachine.operations = 0
        while SchedulerMachine.operations < OPERATIONS:
            super().runTest()
        print(f"state machine: {SchedulerMachine.operations} operations")
        assert SchedulerMachine.operations >= OPERATIONS
