"""Pages of running requests: admission, growth, release, and the block tables that the runner reads."""

from __future__ import annotations

import numpy as np

from .block_tables import BlockTables
from .kv_pool import KVPools
from .plan import AUDIO, GROUP_NAMES, PAGE_SIZE, TEXT, TRUNK, PageCopy
from .prefix_cache import PrefixCache, PrefixMatch
from .request_state import RequestState
from .slot_table import SlotTable


class PageManager:
    """Moves pages between the pools, the prefix cache and requests; ``blocks`` says who holds which."""

    def __init__(self, pools: KVPools, max_sequences: int, max_positions: int, prefix_caching: bool = True):
        self.pools = pools
        self.cache = PrefixCache(pools, enabled=prefix_caching)
        self.blocks = BlockTables(len(pools.groups), max_sequences, -(-max_positions // PAGE_SIZE))
        self._pinned: list[tuple[int, int]] = []

    @property
    def tables(self) -> tuple[np.ndarray, ...]:
        """Block tables of the groups, int32 [max_sequences, max_pages]; row = slot. Entries past a request's pages are stale."""
        return self.blocks.tables

    def capacity(self, state: RequestState) -> int:
        """Positions that this request could hold if it were alone."""
        pages = min(self.pools.groups[group].num_pages for group in state.groups)
        return min(pages, self.tables[0].shape[1]) * PAGE_SIZE

    def admit(self, state: RequestState, headroom: int) -> list[PageCopy] | None:
        """Take every page that the tape needs, sharing what is cached, or take nothing and return None.

        ``headroom`` pages per group stay available. The caller has set ``state.slot``. Sets ``num_computed``.
        """
        match = self.cache.match(state)
        with_rows = match.num_rows > 0
        if not self._fits(state, match, with_rows, headroom):
            with_rows = False
            if not self._fits(state, match, with_rows, headroom):
                return None
        shared = {
            group: [self.pools.groups[group].share(page) for page in match.pages[group]] for group in state.groups
        }
        if with_rows:
            self._pin(state, match)
        self.cache.enter(state, match)
        state.blocks = self.blocks
        for group in state.groups:
            fresh = self.pools.groups[group].allocate_many(state.num_pages_needed - match.num_full)
            self.blocks.extend(group, state.slot, shared[group] + fresh)
        state.num_computed = state.num_cached_tokens = match.num_full * PAGE_SIZE + with_rows * match.num_rows
        self.cache.count(state, match, with_rows)
        if not with_rows:
            return []
        return [
            PageCopy(group, source, self.blocks.page(group, state.slot, match.num_full))
            for group, source in zip(state.groups, match.sources, strict=True)
        ]

    def could_admit(self, state: RequestState, victims: list[RequestState]) -> bool:
        """Whether the tape would fit, without any sharing, if ``victims`` gave back what they hold."""
        return all(
            state.num_pages_needed
            <= self.pools.groups[group].num_available + int(self.blocks.counts[group, [v.slot for v in victims]].sum())
            for group in state.groups
        )

    def open_pages(self, slots: np.ndarray, table: SlotTable, ahead: int = 0) -> bool:
        """Take the page of the newest position, where it is missing, in every group of the decoding requests of ``slots``.

        ``ahead`` > 0: that of the position so many steps later, or of a request's last one; the page before it must be there.
        Returns False, having taken nothing, if there are not enough pages for all of them.
        """
        needed = -(-np.minimum(table.num_tokens[slots] + ahead, table.max_tokens[slots] - 1) // PAGE_SIZE)
        lacking = [slots[self.blocks.counts[TRUNK, slots] < needed]]
        for group, runs in ((TEXT, table.run_text), (AUDIO, table.run_audio)):
            lacking.append(slots[runs[slots] & (self.blocks.counts[group, slots] < needed)])
        if any(len(lack) > pool.num_available for lack, pool in zip(lacking, self.pools.groups, strict=True)):
            return False
        for group, (lack, pool) in enumerate(zip(lacking, self.pools.groups, strict=True)):
            if len(lack):
                self.blocks.append(group, lack, pool.allocate_many(len(lack)))
        return True

    def open_page(self, state: RequestState) -> int | None:
        """For a decoding request: take the page of the newest position, where it is missing, in every group.

        Returns None, or, having taken nothing, a group in which no page is available.
        """
        needed = state.num_pages_needed
        lacking = [group for group in state.groups if self.blocks.counts[group, state.slot] < needed]
        for group in lacking:
            if not self.pools.groups[group].num_available:
                return group
        for group in lacking:
            self.blocks.extend(group, state.slot, [self.pools.groups[group].allocate()])
        return None

    def register(self, state: RequestState, num_computed: int) -> None:
        """Complete pages become shareable."""
        self.cache.register(state, num_computed)

    def release_text(self, state: RequestState) -> None:
        """The text branch will never run again for this request. Call before ``state.end_text``."""
        self.register(state, state.num_computed)
        self.cache.register_rows(state, (TEXT,))
        self.pools.text.release_all(self.blocks.clear(TEXT, state.slot))

    def release(self, state: RequestState, remember: bool = True) -> None:
        """Give back every page; with ``remember`` what was computed since the last ``register`` is cached too."""
        if remember:
            self.register(state, state.num_computed)
            self.cache.register_rows(state, state.groups)
        self.cache.leave(state)
        for group, pool in enumerate(self.pools.groups):
            pool.release_all(self.blocks.clear(group, state.slot))
        state.blocks = None

    def unpin(self) -> None:
        """The step's page copies are done: their sources may be evicted again."""
        for group, page in self._pinned:
            self.pools.groups[group].release(page)
        self._pinned.clear()

    def check(self, running: list[RequestState]) -> None:
        """AssertionError unless pools, cache, block tables and the running requests agree. O(pages)."""
        self.pools.check()
        self.cache.check(running)
        for group, pool in enumerate(self.pools.groups):
            held: dict[int, int] = {}
            pinned = [page for pinned_group, page in self._pinned if pinned_group == group]
            for page in pinned + [page for state in running for page in state.pages[group]]:
                held[page] = held.get(page, 0) + 1
            for page in range(pool.first_page, pool.first_page + pool.num_pages):
                found, expected = pool.references(page), held.get(page, 0)
                assert found == expected, f"{GROUP_NAMES[group]} page {page}: {found} references, {expected} holders"
            assert self.blocks.counts[group].sum() == sum(len(state.pages[group]) for state in running), (
                "a free slot has pages"
            )

    def _fits(self, state: RequestState, match: PrefixMatch, with_rows: bool, headroom: int) -> bool:
        fresh = state.num_pages_needed - match.num_full
        for index, group in enumerate(state.groups):
            pool = self.pools.groups[group]
            taken = fresh + sum(pool.references(page) == 0 for page in match.pages[group])
            if with_rows:
                taken += pool.references(match.sources[index]) == 0
            if taken + headroom > pool.num_available:
                return False
        return True

    def _pin(self, state: RequestState, match: PrefixMatch) -> None:
        for group, source in zip(state.groups, match.sources, strict=True):
            self.pools.groups[group].share(source)
            self._pinned.append((group, source))
