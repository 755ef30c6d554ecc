"""What is reused, group by group, and what must not be."""

from __future__ import annotations

import numpy as np
import pytest

from antiphon.scheduler import AUDIO, TEXT, TRUNK, FeatureSpan, RequestState, content_model
from antiphon.scheduler.content_model import TEXT_EOS, alone
from antiphon.scheduler.slot_table import RING

PROMPT = np.arange(100, 140)


def computed(machine) -> list[int]:
    """Rows run per group since the last call."""
    rows, machine.model.rows_run = machine.model.rows_run, [0, 0, 0]
    return rows


def test_same_prompt_again_computes_one_row(machine):
    m = machine()
    m.add("a", PROMPT, limit=1)
    m.run()
    assert computed(m) == [40, 40, 40]
    state = m.add("b", PROMPT, limit=1)
    plans = m.run()
    assert computed(m) == [1, 1, 1]
    assert state.num_cached_tokens == 39
    assert len(plans[0].copies) == 3, "39 of 40 rows: the last page is copied in every group, not shared"


@pytest.mark.parametrize("length", [15, 16, 17, 32, 33])
def test_the_last_position_is_always_computed(machine, length):
    m = machine()
    for name in ("a", "b"):
        state = m.add(name, np.arange(length), limit=3)
        m.run()
    assert state.num_cached_tokens == length - 1


def test_speech_after_text_only_recomputes_everything(machine):
    m = machine()
    m.add("t", PROMPT, kind="text", limit=1)
    m.run()
    state = m.add("b", PROMPT, kind="both", limit=4)
    m.run()
    assert state.num_cached_tokens == 0


def test_text_only_after_speech_reuses_trunk_and_text(machine):
    m = machine()
    m.add("b", PROMPT, kind="both", limit=1)
    m.run()
    state = m.add("t", PROMPT, kind="text", limit=4)
    m.run()
    assert state.num_cached_tokens == 39


def test_missing_group_is_added_to_known_content(machine):
    """trunk and text pages of the first, audio pages of the second request: the third finds all three."""
    m = machine()
    for name, kind, cached in (("a", "text", 0), ("b", "both", 0), ("c", "both", 39)):
        state = m.add(name, PROMPT, kind=kind, limit=2)
        m.run()
        assert state.num_cached_tokens == cached


def test_equal_ids_with_another_recording_share_nothing_behind_it(machine):
    m = machine()
    spans = {name: [FeatureSpan(20, 10, digest)] for name, digest in (("a", b"x"), ("b", b"y"), ("c", b"x"))}
    cached = {}
    for name in "abc":
        cached[name] = m.add(name, PROMPT, limit=2, features=spans[name])
        m.run()
    assert [cached[name].num_cached_tokens for name in "abc"] == [0, 20, 39]


def test_another_row_of_the_same_recording_is_another_feature(machine):
    m = machine()
    m.add("a", PROMPT, limit=1, features=[FeatureSpan(0, 16, b"x", first_row=0)])
    m.run()
    state = m.add("b", PROMPT, limit=1, features=[FeatureSpan(0, 16, b"x", first_row=1)])
    m.run()
    assert state.num_cached_tokens == 0


def test_salt_separates_tenants(machine):
    m = machine()
    m.add("a", PROMPT, limit=1, cache_salt=b"one")
    m.run()
    assert m.add("b", PROMPT, limit=1, cache_salt=b"two").num_cached_tokens == 0
    m.run()
    assert m.scheduler.memory.cache.statistics.hit_rate == 0


def second_turn(machine, keep_text_pages):
    """First turn that says 62 things; then a question of 7 behind all of it. Returns (first, second) states."""
    m = machine()
    for seed in range(200):
        first = m.add(f"a{seed}", np.arange(seed, seed + 40), limit=62, keep_text_pages=keep_text_pages)
        texts, _, reason = m.expected[first.request_id]
        if reason == "length" and TEXT_EOS in texts[:12]:
            break
        m.scheduler.abort(first.request_id)
    m.run()
    computed(m)
    rows = first.rows(0, first.num_tokens)
    ids = np.concatenate([rows, np.stack([np.arange(7)] * 3, axis=1)])
    second = RequestState("second", ids[:, 0], ids[:, 1], output_type="both", max_new_tokens=5)
    m.seeds["second"] = 9
    m.scheduler.add(second)
    m.expected["second"] = alone(second, 9)
    m.step()
    m.step()
    return m, first, second


def test_second_turn_computes_only_the_new_part_when_text_pages_are_kept(machine):
    m, first, second = second_turn(machine, keep_text_pages=True)
    assert second.num_cached_tokens == first.num_tokens - 1, "the last sampled pair was never an input"
    m.run()


def test_second_turn_recomputes_from_where_the_text_branch_stopped(machine):
    m, first, second = second_turn(machine, keep_text_pages=False)
    text_len = first.prompt_len + first.generated_text.tolist().index(TEXT_EOS) + 1
    assert text_len - 16 <= second.num_cached_tokens <= text_len
    m.run()


def test_generated_pages_are_found_while_their_request_still_runs(machine):
    m = machine()
    first = m.add("a", PROMPT, kind="text", limit=200)
    while first.num_tokens < 70 and first.finish_reason is None:
        m.step()
    rows = first.rows(0, first.num_tokens)
    second = m.add("b", PROMPT, kind="text", limit=3)
    m.step()
    assert second.num_cached_tokens == 39 and len(rows) >= 41
    m.run()


def follow_up(m, first, num_tokens, name="b"):
    """A text request whose prompt is the beginning of another one's tape; stepped once."""
    rows = first.rows(0, num_tokens)
    state = RequestState(name, rows[:, 0], rows[:, 1], output_type="text", max_new_tokens=3)
    m.seeds[name] = 3
    m.scheduler.add(state)
    m.expected[name] = alone(state, 3)
    m.step()
    return state


@pytest.fixture
def endless(monkeypatch):
    """No stream ends by itself."""
    token = content_model._token
    monkeypatch.setattr(
        content_model, "_token", lambda group, seed, step, view, end, odds: token(group, seed, step, view, 7, odds)
    )


def long_answer(m, num_tokens):
    """A text request that has run until its tape has so many positions, and goes on."""
    first = m.add("a", PROMPT, kind="text", limit=num_tokens)
    while first.num_tokens < num_tokens:
        m.step()
    return first


@pytest.mark.parametrize(("num_tokens", "cached"), [(60, 59), (65, 64), (70, 64)])
def test_what_a_running_request_has_generated_is_registered_when_somebody_asks(machine, endless, num_tokens, cached):
    """Rows behind its last complete page are not shared while it runs: 64 of 70; within complete pages, every row is."""
    m = machine()
    first = long_answer(m, 75)
    assert first.num_registered == 2, "a decode step registers nothing"
    second = follow_up(m, first, num_tokens)
    assert second.num_cached_tokens == cached and first.num_registered == 4
    m.run()


def test_generated_pages_are_registered_when_the_ring_is_full(machine, endless):
    m = machine(max_positions=400)
    first = long_answer(m, RING + 2)
    assert first.num_registered == RING // 16 and first.synced_len == RING + 1
    m.run()


def test_a_preempted_request_finds_its_own_generated_pages_again(machine, endless):
    m = machine(pages=16)
    first = long_answer(m, 75)
    m.scheduler._preempt(first)
    m.step()
    assert first.num_cached_tokens == 74 and first.num_preemptions == 1
    m.run()


def test_a_page_outlives_the_pages_before_it_in_the_tree(machine):
    """The first pages of a chain are taken away; when they are computed again, what follows them is found."""
    m = machine()
    m.add("a", np.arange(64), limit=1)
    m.run()
    cache, pools = m.scheduler.memory.cache, m.scheduler.memory.pools.groups
    for group, pool in enumerate(pools):
        page = next(page for page, node in cache._nodes[group].items() if node.rows[:24] == node_rows(0))
        pool.forget(page)
        cache._drop(group, [page])
    m.scheduler.check()
    for name, cached in (("b", 0), ("c", 63)):
        state = m.add(name, np.arange(64), limit=1)
        m.run()
        assert state.num_cached_tokens == cached


def node_rows(token: int) -> bytes:
    """One tape row as the index stores it: audio id, text id, no feature."""
    return np.array([token, token + 1, 0]).tobytes()


def test_eviction_takes_the_deepest_page_of_the_oldest_prefix(machine):
    m = machine(pages=8)
    m.add("a", PROMPT, limit=1)
    m.run()
    m.add("b", np.arange(500, 596), limit=1)
    m.run()
    evicted = m.scheduler.memory.cache.statistics.evicted_pages
    assert evicted == [1, 1, 1]
    state = m.add("c", PROMPT, limit=1)
    m.run()
    assert state.num_cached_tokens == 32, "two complete pages are still there, the third, incomplete one is not"


def test_sources_of_copies_are_held_until_the_step_is_committed(machine):
    m = machine()
    m.add("a", PROMPT, limit=1)
    m.run()
    m.add("b", PROMPT, limit=1)
    plan = m.scheduler.schedule(0.0)
    pools = m.scheduler.memory.pools.groups
    assert all(pools[copy.group].references(copy.source) == 1 for copy in plan.copies)
    assert {copy.group for copy in plan.copies} == {TRUNK, TEXT, AUDIO}
    m.scheduler.commit(plan, m.model.run(plan))
    assert all(pools[copy.group].references(copy.source) == 0 for copy in plan.copies)


def test_rows_that_were_never_copied_are_not_remembered(machine):
    m = machine()
    m.add("a", PROMPT, limit=1)
    m.run()
    m.add("b", PROMPT, limit=1)
    plan = m.scheduler.schedule(0.0)
    indexed = len(m.scheduler.memory.cache)
    m.scheduler.memory.cache.clear()
    m.scheduler.abort("b")
    m.scheduler.discard(plan)
    assert indexed > 0 and len(m.scheduler.memory.cache) == 0
    m.scheduler.check()


def test_clear_forgets_everything(machine):
    m = machine()
    m.add("a", PROMPT, limit=1)
    m.run()
    m.scheduler.memory.cache.clear()
    m.scheduler.check()
    state = m.add("b", PROMPT, limit=1)
    m.run()
    assert state.num_cached_tokens == 0


def test_disabled_cache_remembers_nothing(machine):
    m = machine(prefix_caching=False)
    for name in "ab":
        state = m.add(name, PROMPT, limit=3)
        m.run()
    assert state.num_cached_tokens == 0 and len(m.scheduler.memory.cache) == 0


def test_statistics_count_positions(machine):
    m = machine()
    for name in "ab":
        m.add(name, PROMPT, limit=1)
        m.run()
    s = m.scheduler.memory.cache.statistics
    assert (s.lookups, s.tokens_looked_up, s.tokens_shared, s.tokens_copied) == (2, 80, 32, 7)
    assert s.hit_rate == pytest.approx(39 / 80)
