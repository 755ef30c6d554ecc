"""Deadlines: who goes first, who yields, who gives way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from antiphon.scheduler import (
    DeadlineOptions,
    DeadlinePolicy,
    FcfsPolicy,
    LinearCostModel,
    PlaybackClock,
    SpeechJob,
)

COST = LinearCostModel(step_base=0.01, prefill_token=1e-3, decode_row=1e-3, speech_base=0.02, speech_frame=1e-3)
OPTIONS = DeadlineOptions(
    far_ahead=2.0, step=0.05, margin=0.1, speech_batch=0.3, min_prefill_tokens=8, typical_frames=30
)


def policy(**costs: float) -> DeadlinePolicy:
    return DeadlinePolicy(OPTIONS, replace(COST, **costs))


def decoding(m, play_ends: list[float | None]) -> list:
    """So many streams that decode, with listeners that run out at ``play_ends`` (None: nothing heard yet)."""
    states = [m.add(f"s{index}", 16 + index, limit=300) for index in range(len(play_ends))]
    while any(state.num_generated == 0 for state in states):
        m.step()
    for state, play_end in zip(states, play_ends):
        if play_end is not None:
            m.scheduler.set_playback(state.request_id, play_end, state.num_generated)
    return states


def order(m, now: float):
    table = m.scheduler.table
    waiting = [entry[-1] for entry in m.scheduler.waiting]
    return m.scheduler.policy.order(now, table, list(m.scheduler.prefilling.values()), waiting, 64)


def test_playback_clock_counts_gaps():
    clock = PlaybackClock()
    assert clock.buffered(0.0) == 0
    assert clock.emitted(1.0, 0.5) and clock.end == 1.5
    assert clock.emitted(1.2, 0.5) and clock.end == 2.0
    assert clock.buffered(1.5) == 0.5
    assert not clock.emitted(2.5, 1.0)
    assert (clock.end, clock.silence, clock.num_late, clock.seconds) == (3.5, 0.5, 1, 2.0)
    assert clock.viability == 0.5


def test_streams_far_ahead_pause_while_a_prompt_is_computed(machine):
    m = machine(policy=policy(decode_row=5e-3))
    near, far, silent = decoding(m, [1.0, 60.0, None])
    assert len(order(m, 0.0).decodes) == 3, "nobody waits: all run"
    m.add("new", 40)
    assert order(m, 0.0).decodes.tolist() == [silent.slot, near.slot]
    assert far.slot in order(m, 59.0).decodes, "its listener has caught up"
    m.scheduler.abort("new")
    m.run()


def test_nobody_pauses_where_that_would_not_shorten_the_step(machine):
    m = machine(policy=policy(decode_row=1e-5))
    decoding(m, [1.0, 60.0, None])
    m.add("new", 40)
    assert len(order(m, 0.0).decodes) == 3
    m.run()


def test_paused_streams_run_when_nobody_can_be_admitted(machine):
    m = machine(policy=policy(decode_row=5e-3), max_sequences=2)
    decoding(m, [60.0, 60.0])
    m.add("new", 40)
    plan = m.step()
    assert plan.num_decodes == 2 and m.scheduler.num_running == 2
    m.run()


def test_prompt_chunks_fit_the_most_urgent_listener(machine):
    m = machine(policy=policy(), token_budget=1024)
    decoding(m, [0.5])
    m.add("new", 500)
    p, table = policy(), m.scheduler.table
    waiting = [entry[-1] for entry in m.scheduler.waiting]
    tokens = [p.order(now, table, [], waiting, 1024).prefill_tokens for now in (-2.0, -1.0, 0.0, 5.0)]
    assert tokens == [1023, 1023, 255, 31], "all while there is enough sound; then what the listener can wait for"
    for now, count in zip((-1.0, 0.0), tokens[1:]):
        assert COST.llm_step(count, 1) <= 0.5 - now - OPTIONS.margin
    m.run()


def test_short_prompts_pass_long_ones_but_not_for_ever(machine):
    m = machine(policy=policy(), pages=128, max_sequences=4)
    m.add("long", 400, arrival=0.0)
    m.add("short", 20, arrival=1.0)
    m.add("late", 20, arrival=2.0)
    names = [state.request_id for state in order(m, 2.0).prefills]
    assert names == ["short", "long", "late"], "0.38 s more of computing are worth 1.5 s of arrival"
    m.run()


def test_preempted_stream_comes_back_before_its_listener_runs_out(machine):
    m = machine(policy=policy())
    (state,) = decoding(m, [10.0])
    m.scheduler._preempt(state)
    m.scheduler._preempted.clear()
    m.add("new", 30, arrival=5.0)
    assert [s.request_id for s in order(m, 5.0).prefills] == ["new", "s0"]
    m.scheduler.abort("new")
    m.add("newer", 30, arrival=9.95)
    assert [s.request_id for s in order(m, 9.95).prefills] == ["s0", "newer"]
    m.run()


def test_the_stream_with_the_most_sound_gives_way(machine):
    m = machine(policy=policy())
    states = decoding(m, [5.0, 9.0, None])
    assert m.scheduler.policy.victim(0.0, states) is states[1]
    assert m.scheduler.policy.victim(20.0, states) is states[2], "nobody has sound: the latest arrival"
    assert FcfsPolicy().victim(0.0, states) is states[2]
    m.run()


JOBS = [
    SpeechJob("rich", 100, 9.0, 0.0),
    SpeechJob("poor", 100, 0.2, 1.0),
    SpeechJob("new", 50, -math.inf, -0.2),
    SpeechJob("newer", 50, -math.inf, -0.1),
]


def chosen(m, jobs=JOBS, oldest_prompt=math.inf, max_batch=8) -> list[str]:
    table = m.scheduler.table
    return [job.request_id for job in policy().choose_speech(0.0, jobs, table, oldest_prompt, max_batch)]


def test_speech_goes_by_deadline_all_at_once_when_nobody_else_waits(machine):
    m = machine(policy=policy())
    assert chosen(m) == ["poor", "new", "newer", "rich"]
    assert chosen(m, max_batch=2) == ["poor", "new"]
    (far,) = decoding(m, [30.0])
    assert far.play_end > OPTIONS.far_ahead
    assert chosen(m) == ["poor", "new", "newer", "rich"], "the language model is far ahead, too"
    m.run()


def test_speech_that_can_wait_lets_a_new_request_be_heard_first(machine):
    m = machine(policy=policy())
    decoding(m, [None])
    assert chosen(m) == ["poor", "new", "newer"]
    assert chosen(m, JOBS[:1]) == []
    m.run()
    assert chosen(m, JOBS[:1], oldest_prompt=-0.1) == []
    assert chosen(m, JOBS[:1]) == ["rich"]


def test_speech_batches_end_where_a_decoding_stream_runs_dry(machine):
    m = machine(policy=policy())
    jobs = [SpeechJob(f"j{index}", 100, 0.1 * index, 0.0) for index in range(8)]
    (state,) = decoding(m, [0.4])
    assert len(chosen(m, jobs)) == 2, "0.3 s may always be taken: two chunks of 0.1 s and the fixed part"
    m.scheduler.set_playback(state.request_id, 0.8, state.num_generated)
    assert len(chosen(m, jobs)) == 6, "0.8 s less margin and the stream's own chunk of 0.05 s: 0.62 s fit"
    m.scheduler.set_playback(state.request_id, 0.8, state.num_generated + 20)
    assert len(chosen(m, jobs)) == 4, "the stream needs 20 more steps of 11 ms first"
    m.run()


def test_first_come_first_served_solves_what_is_ready_in_order_of_arrival(machine):
    table = machine().scheduler.table
    assert [j.request_id for j in FcfsPolicy().choose_speech(0.0, JOBS, table, 0.0, 3)] == ["new", "newer", "rich"]


def test_a_policy_that_does_nothing_starves_nobody(machine):
    class Idle(FcfsPolicy):
        def order(self, now, table, prefilling, waiting, token_budget):
            full = super().order(now, table, prefilling, waiting, token_budget)
            return full._replace(decodes=np.empty(0, np.int64), prefills=(), prefill_tokens=0)

    m = machine(policy=Idle(), pages=10)
    states = [m.add(f"r{index}", 30, limit=40) for index in range(6)]
    m.run()
    assert all(state.finish_reason for state in states)


def test_cost_model_follows_what_it_sees():
    cost = LinearCostModel()
    for _ in range(200):
        cost.observe_llm_step(100, 8, 0.5)
        cost.observe_speech([120, 168], 2.0)
    assert cost.llm_step(100, 8) == pytest.approx(0.5, rel=0.05)
    assert cost.speech([120, 168]) == pytest.approx(2.0, rel=0.05)
    assert cost.llm_step(200, 8) > cost.llm_step(100, 8)
