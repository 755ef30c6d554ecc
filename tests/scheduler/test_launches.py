"""Several decode steps in one plan: the same tokens, pages there ahead, and one step at a time whenever somebody waits."""

from __future__ import annotations

import numpy as np
import pytest

from antiphon.scheduler import DeadlineOptions, DeadlinePolicy, FcfsPolicy, LinearCostModel, content_model
from antiphon.scheduler.slot_table import MAX_LAUNCH, RING


def run(m, *sizes: int) -> list[int]:
    """Until nothing is left, with these sizes in turn; returns the steps of every plan."""
    steps = []
    while plan := m.step(sizes[len(steps) % len(sizes)]):
        steps.append(plan.steps)
        assert len(steps) < 2000, "it does not end"
    assert all(pool.num_used == 0 for pool in m.scheduler.memory.pools.groups)
    return steps


@pytest.mark.parametrize("sizes", [(2,), (4,), (MAX_LAUNCH,), (1, 7, 3)])
def test_tokens_are_those_of_single_steps(machine, sizes):
    m = machine(policy=FcfsPolicy())
    for index in range(8):
        m.add(f"r{index}", 5 + 7 * index, "text" if index % 3 == 0 else "both", limit=6 + 9 * index)
    assert max(run(m, *sizes)) == max(sizes)


def test_with_too_few_pages_steps_are_single_and_requests_still_give_way(machine):
    m = machine(pages=9, policy=FcfsPolicy())
    for index in range(4):
        m.add(f"r{index}", 20, limit=60, seed=index + 40)
    steps = run(m, 8)
    assert {1, 8} <= set(steps) and m.scheduler.num_preemptions > 0


def test_nothing_is_taken_for_positions_behind_the_limit(machine):
    m = machine(policy=FcfsPolicy())
    state = m.add("short", 14, "text", limit=3)
    m.step(4)
    plan = m.step(16)
    assert plan.steps == 16 and m.scheduler.memory.blocks.counts.max() == 0
    assert state.finish_reason is not None and state.num_tokens <= 17


def test_prompts_and_waiting_requests_are_looked_at_between_steps(machine):
    m = machine(policy=FcfsPolicy(), max_sequences=2, token_budget=8)
    first = m.add("first", 4, limit=300)
    assert m.step(4).steps == 1, "a prompt"
    m.add("long prompt", 30, limit=300)
    while m.scheduler.waiting or m.scheduler.prefilling:
        assert m.step(4).steps == 1
    assert m.step(4).steps == 4
    m.add("waits", 4)
    assert m.step(4).steps == 1, "there is no slot for it, yet somebody may end in any step"
    m.scheduler.abort("waits")
    assert m.step(4).steps == 4 and first.num_generated > 5


@pytest.mark.parametrize("sizes", [(3, 1), (16,), (1, 1, 5)])
def test_long_answers_do_not_overrun_the_ring(machine, monkeypatch, sizes):
    token = content_model._token
    monkeypatch.setattr(content_model, "_token", lambda *how: token(*how[:4], 7, how[5]))  # nothing ends by itself
    m = machine(pages=200, policy=FcfsPolicy(), max_positions=900)
    for index in range(3):
        m.add(f"r{index}", 3 + 5 * index, "text", limit=2 * RING + 30 * index)
    assert max(run(m, *sizes)) == max(sizes)


def listening(m, play_end: float, missing: int):
    state = m.add("speaker", 8, limit=200)
    while state.num_generated == 0:
        m.step(1)
    m.scheduler.set_playback("speaker", play_end, state.num_generated + missing)
    return state


@pytest.mark.parametrize(
    ("step_seconds", "missing", "expected"), [(0.01, 50, 5), (0.001, 50, 50), (0.01, 3, 3), (0.2, 50, 1), (0.01, 0, 5)]
)
def test_deadlines_bound_a_launch(machine, step_seconds, missing, expected):
    """By what a newcomer may wait, and by the end of the next speech chunk."""
    cost = LinearCostModel(step_base=step_seconds, decode_row=0.0)
    policy = DeadlinePolicy(DeadlineOptions(step=0.05), cost)
    m = machine(policy=policy)
    listening(m, 5.0, missing)
    assert policy.decode_steps(m.now, m.scheduler.table) == expected
    assert m.step(4).steps == (4 if expected >= 4 else 1)


def test_a_stream_that_only_reads_has_no_chunk_to_wait_for(machine):
    policy = DeadlinePolicy(DeadlineOptions(step=0.05), LinearCostModel(step_base=0.01, decode_row=0.0))
    m = machine(policy=policy)
    state = m.add("reader", 8, "text", limit=200, seed=3)
    while state.num_generated == 0:
        m.step(1)
    m.scheduler.set_playback("reader", -np.inf, state.num_generated + 1)
    assert policy.decode_steps(m.now, m.scheduler.table) == 5


@pytest.mark.parametrize(("step_seconds", "missing", "expected"), [(0.2, 50, 4), (0.01, 3, 3), (0.01, 1, 1)])
def test_a_draft_is_worth_the_wait(machine, step_seconds, missing, expected):
    """``min_launch`` however slow a step is, and with shorter launches as many as a chunk still needs."""
    cost = LinearCostModel(step_base=step_seconds, decode_row=0.0)
    policy = DeadlinePolicy(DeadlineOptions(step=0.05, min_launch=4), cost)
    m = machine(policy=policy, shorter_launches=True)
    listening(m, 5.0, missing)
    assert m.step(4).steps == expected


def test_shorter_launches_give_the_same_tokens(machine):
    cost = LinearCostModel(step_base=0.01)
    m = machine(policy=DeadlinePolicy(DeadlineOptions(step=0.05), cost), shorter_launches=True)
    for index in range(8):
        m.add(f"r{index}", 5 + 7 * index, "text" if index % 3 == 0 else "both", limit=6 + 9 * index)
    assert set(run(m, 8)) == {1, 4}
