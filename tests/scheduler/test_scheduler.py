"""Continuous batching: budget, admission, preemption, cancellation, and what a plan says."""

from __future__ import annotations

import numpy as np
import pytest

from antiphon.errors import ConfigError, InputError, PromptTooLongError
from antiphon.scheduler import AUDIO, TEXT, Phase, RequestState, SchedulerConfig, StepResults
from antiphon.scheduler.content_model import TEXT_EOS


def test_prompts_run_in_chunks_beside_decoding(machine):
    m = machine(token_budget=32)
    m.add("short", 10, kind="text", limit=30)
    m.step()
    m.add("long", 100)
    plans = [m.step() for _ in range(4)]
    assert [plan.num_rows for plan in plans[:3]] == [32, 32, 32]
    assert all(plan.num_decodes == 1 for plan in plans[:3])
    chunks = [sequence for plan in plans for sequence in plan.sequences if sequence.request_id == "long"]
    assert [(c.start, c.length, c.samples) for c in chunks] == [
        (0, 31, False), (31, 31, False), (62, 31, False), (93, 7, True)
    ]  # fmt: skip
    m.run()


def test_columns_and_sequences_say_the_same(machine):
    m = machine(token_budget=24)
    for name, kind in (("a", "text"), ("b", "both"), ("c", "both")):
        m.add(name, 30, kind=kind, limit=20)
    for plan in m.run():
        assert [s.slot for s in plan.sequences] == plan.slots.tolist()
        assert sum(s.length for s in plan.sequences) == plan.num_rows == plan.lengths.sum() <= 24
        assert all(s.length == 1 and s.samples for s in plan.sequences[: plan.num_decodes])
        assert [s.request_id for s in plan.sampling] == [i for i, s in zip(plan.request_ids, plan.samples) if s]
        assert plan.num_generated[: plan.num_decodes].min(initial=1) >= 1


def test_no_more_than_max_sequences_run(machine):
    m = machine(max_sequences=3)
    for index in range(7):
        m.add(f"r{index}", limit=6)
    plans = m.run()
    assert max(len(plan.sequences) for plan in plans) == 3
    order = [assignment.request_id for plan in plans for assignment in plan.assigned]
    assert order == [f"r{index}" for index in range(7)]


def test_text_only_requests_hold_no_audio_pages(machine):
    m = machine(pages=(16, 16, 1))
    state = m.add("t", 40, kind="text", limit=30)
    m.step()
    assert not state.pages[AUDIO] and m.scheduler.memory.pools.audio.num_used == 0
    m.run()
    assert m.model.rows_run[AUDIO] == 0


def test_text_pages_are_released_with_the_end_of_the_text(machine):
    m = machine()
    states = [m.add(f"b{index}", 40, limit=60) for index in range(8)]
    ended = 0
    while m.scheduler.requests:
        plan = m.step()
        for state in states:
            if state.phase is Phase.DECODING and TEXT_EOS in state.generated_text:
                ended += 1
                assert state.text_ended and not state.pages[TEXT] and not state.run_text
        names = {s.request_id: s for s in plan.sequences}
        assert all(names[s.request_id].run_audio for s in states if s.request_id in names)
    assert ended > 20


def test_page_pressure_preempts_the_latest_and_changes_no_token(machine):
    m = machine(pages=7, max_sequences=4)
    states = [m.add(f"r{index}", 30, limit=60, arrival=float(index)) for index in range(12)]
    m.run()
    assert m.scheduler.num_preemptions > 0
    assert states[0].num_preemptions == 0, "the first to come never gives way"


def test_preempted_request_comes_back_with_its_history(machine):
    m = machine(pages=7, max_sequences=2, prefix_caching=False, token_budget=200)
    for index in range(2):
        m.add(f"r{index}", 40, kind="text", limit=60, seed=(33, 12)[index])
    plans = m.run()
    back = [a for plan in plans for a in plan.assigned if a.num_generated > 0]
    assert back and all(a.request_id == "r1" for a in back)
    resumed = next(s for plan in plans for s in plan.sequences if s.request_id == "r1" and s.samples and s.length > 40)
    assert resumed.start + resumed.length == 40 + back[0].num_generated


def test_higher_priority_takes_pages_and_slots_of_lower(machine):
    m = machine(max_sequences=2)
    low = [m.add(f"low{index}", 20, kind="text", limit=40, priority=1) for index in range(2)]
    m.step()
    m.add("high", 20, priority=0)
    plan = m.step()
    assert [a.request_id for a in plan.assigned] == ["high"] and plan.preempted == ("low1",)
    m.run()
    assert [state.num_preemptions for state in low] == [0, 1]


def test_equal_priority_waits_its_turn(machine):
    m = machine(max_sequences=1)
    m.add("first", 20, kind="text", limit=5)
    m.step()
    m.add("second", 20)
    assert m.step().assigned == ()
    m.run()


def test_big_request_at_the_head_of_the_queue_is_not_overtaken_forever(machine):
    m = machine(pages=10, max_sequences=4)
    m.add("a", 60, kind="text", limit=30)
    m.step()
    m.add("big", 120, kind="text", limit=5)
    for index in range(4):
        m.add(f"small{index}", 10, kind="text", limit=5)
    order = [a.request_id for plan in m.run() for a in plan.assigned if a.num_generated == 0]
    assert order.index("big") < order.index("small0")


@pytest.mark.parametrize("stage", ["waiting", "prefilling", "decoding", "in flight"])
def test_abort_frees_everything_at_once(machine, stage):
    m = machine(token_budget=16, max_sequences=1)
    m.add("other", 5, limit=50)
    if stage != "waiting":
        m.scheduler.abort("other")
    state = m.add("x", 40, limit=50)
    for _ in range({"waiting": 1, "prefilling": 1, "decoding": 8, "in flight": 1}[stage]):
        m.step()
    plan = m.scheduler.schedule(0.0) if stage == "in flight" else None
    results = m.model.run(plan) if plan else None
    before = {"waiting": Phase.WAITING, "decoding": Phase.DECODING}.get(stage, Phase.PREFILLING)
    assert state.phase is before or (stage == "decoding" and state.finish_reason)
    m.scheduler.abort("x", "stop")
    assert state.finish_reason == "stop" and state.slot == -1 and not any(state.pages)
    if plan:
        assert m.scheduler.commit(plan, results) == []
    m.scheduler.abort("other")
    m.scheduler.check()
    assert all(pool.num_used == 0 for pool in m.scheduler.memory.pools.groups)


def test_discarded_plan_leaves_no_trace(machine):
    m = machine(token_budget=16)
    m.add("a", 40, limit=20)
    m.add("b", 40, limit=20)
    for index in range(40):
        if index % 3 == 0 and m.scheduler.requests:
            plan = m.scheduler.schedule(m.now)
            m.model.note_block_writes(plan)
            m.scheduler.discard(plan)
            m.scheduler.check()
        m.step()
    m.run()


def test_limits_of_context_and_pools(machine):
    m = machine(pages=(10, 10, 4), max_positions=512)
    with pytest.raises(PromptTooLongError, match="65 positions.*hold 64"):
        m.add("x", 65, kind="both")
    assert m.add("y", 60, kind="both", limit=100).max_new_tokens == 5, "64 positions, and the last pair needs none"
    assert m.add("z", 60, kind="text", limit=1000).max_new_tokens == 101
    m.run()


def test_request_that_cannot_grow_finishes_with_length(machine):
    m = machine(pages=4, max_sequences=1)
    for index in range(30):
        state = m.add(f"r{index}", 40, limit=500)
        m.run()
        if state.finish_reason == "length":
            break
    assert state.num_tokens == 65 and state.finish_reason == "length"


def test_wrong_use_is_refused(machine):
    m = machine()
    m.add("a")
    with pytest.raises(InputError, match="already in use"):
        m.scheduler.add(RequestState("a", np.ones(3), np.ones(3), output_type="text", max_new_tokens=1))
    with pytest.raises(ConfigError, match="token_budget 4"):
        SchedulerConfig(token_budget=4, max_sequences=5)
    for bad in ({"output_type": "audio"}, {"max_new_tokens": 0}, {"text_ids": np.ones(2)}, {"audio_ids": np.ones(0)}):
        arguments = {"audio_ids": np.ones(3), "text_ids": np.ones(3), "output_type": "text", "max_new_tokens": 1, **bad}
        with pytest.raises(InputError):
            RequestState("b", arguments.pop("audio_ids"), arguments.pop("text_ids"), **arguments)
    plan = m.scheduler.schedule(0.0)
    with pytest.raises(AssertionError, match="before the last plan"):
        m.scheduler.schedule(0.0)
    with pytest.raises(ValueError, match="2 results for 1"):
        m.scheduler.commit(plan, StepResults([1, 2], [1, 2], [False] * 2, [False] * 2))


def test_block_writes_alone_reproduce_the_tables(machine):
    """The model keeps its own tables from the writes and compares them in every forward; here: nothing is written twice."""
    m = machine(pages=10, max_sequences=3)
    for index in range(6):
        m.add(f"r{index}", 30, limit=40)
    for plan in m.run():
        keys = [(w.group, w.slot, w.index) for w in plan.block_writes]
        assert len(keys) == len(set(keys))


def test_idle_scheduler_plans_nothing(machine):
    assert machine().scheduler.schedule(0.0) is None
