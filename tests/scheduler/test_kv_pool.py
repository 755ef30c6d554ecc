"""Page books: states, counts, eviction order."""

from __future__ import annotations

import pytest

from antiphon.scheduler import KVPools, PagePool


def test_allocate_hands_out_every_page_once_then_raises():
    pool = PagePool(5, first_page=10)
    assert sorted(pool.allocate() for _ in range(5)) == [10, 11, 12, 13, 14]
    assert (pool.num_used, pool.num_available) == (5, 0)
    with pytest.raises(IndexError, match="exhausted"):
        pool.allocate()
    pool.check()


def test_shared_page_is_free_after_its_last_holder():
    pool = PagePool(2)
    page = pool.allocate()
    pool.share(page)
    pool.release(page)
    assert pool.references(page) == 1 and pool.num_used == 1
    pool.release(page)
    assert pool.num_free == 2
    pool.check()


def test_release_twice_is_caught():
    pool = PagePool(2)
    page = pool.allocate()
    pool.release(page)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(page)


def test_sharing_a_free_page_is_caught():
    with pytest.raises(AssertionError, match="free"):
        PagePool(2).share(0)


def test_cached_pages_go_oldest_first_and_only_when_no_free_page_is_left():
    pool, evicted = PagePool(4), []
    pool.on_evict = evicted.extend
    pages = [pool.allocate() for _ in range(3)]
    for page in pages:
        pool.remember(page)
    pool.release_all(pages)
    assert (pool.num_cached, pool.num_free) == (3, 1)
    pool.allocate()
    assert evicted == []
    pool.share(pages[2])
    pool.release(pages[2])
    assert [pool.allocate() for _ in range(3)] == [pages[1], pages[0], pages[2]] == evicted
    assert pool.num_evictions == 3
    pool.check()


def test_many_pages_at_once_are_all_or_none():
    pool, evicted = PagePool(5), []
    pool.on_evict = evicted.extend
    cached = pool.allocate_many(3)
    for page in cached:
        pool.remember(page)
    pool.release_all(cached)
    with pytest.raises(IndexError, match="exhausted"):
        pool.allocate_many(6)
    assert (pool.num_free, pool.num_cached, evicted) == (2, 3, [])
    assert len(set(pool.allocate_many(4))) == 4 and evicted == cached[:0:-1]
    assert pool.allocate_many(0) == []
    pool.check()


def test_forget_frees_an_idle_page_and_leaves_a_used_one():
    pool = PagePool(2)
    used, idle = pool.allocate(), pool.allocate()
    pool.remember(used)
    pool.remember(idle)
    pool.release(idle)
    pool.forget(used)
    pool.forget(idle)
    assert (pool.num_used, pool.num_free, pool.num_cached) == (1, 1, 0)
    pool.check()


def test_check_finds_a_lost_page():
    pool = PagePool(3)
    pool._free.pop()
    with pytest.raises(AssertionError, match="lost"):
        pool.check()


def test_audio_ids_follow_text_ids():
    pools = KVPools(4, 3, 5)
    assert sorted(pools.text.allocate() for _ in range(3)) == [0, 1, 2]
    assert sorted(pools.audio.allocate() for _ in range(5)) == [3, 4, 5, 6, 7]
    assert pools.counts()["audio"] == {"total": 5, "used": 5, "cached": 0, "free": 0}


def test_budget_is_not_exceeded_and_too_small_a_budget_says_so():
    pools = KVPools.from_budget(10_000, trunk_page_bytes=220, branch_page_bytes=60, audio_share=0.5)
    sizes = [pool.num_pages for pool in pools.groups]
    assert sizes[0] == sizes[1] == 2 * sizes[2] + sizes[0] % 2
    assert 9_000 < sizes[0] * 220 + (sizes[1] + sizes[2]) * 60 <= 10_000
    with pytest.raises(ValueError, match="340"):
        KVPools.from_budget(300, 220, 60)
