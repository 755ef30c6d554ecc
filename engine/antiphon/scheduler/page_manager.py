"""Pages of running requests: admission, growth, release, and the block tables that the runner reads."""

from __future__ import annotations

import numpy as np

from .kv_pool import KVPools
from .plan import GROUP_NAMES, PAGE_SIZE, TEXT, BlockWrite, PageCopy
from .prefix_cache import PrefixCache, PrefixMatch
from .request_state import RequestState


class PageManager:
    """Moves pages between the pools, the prefix cache and requests.

    ``tables[group]`` is int32 [max_sequences, max_pages]; row = slot. Entries past a request's pages are stale.
    """

    def __init__(self, pools: KVPools, max_sequences: int, max_positions: int, prefix_caching: bool = True):
        self.pools = pools
        self.cache = PrefixCache(pools, enabled=prefix_caching)
        width = -(-max_positions // PAGE_SIZE)
        self.tables = tuple(np.zeros((max_sequences, width), np.int32) for _ in pools.groups)
        self._writes: dict[tuple[int, int, int], int] = {}
        self._pinned: list[tuple[int, int]] = []

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
        for group in state.groups:
            share = self.pools.groups[group].share
            state.pages[group].extend(share(page) for page in match.pages[group])
        if with_rows:
            self._pin(state, match)
        for group in state.groups:
            self._extend(state, group, state.num_pages_needed - match.num_full)
            self._write(state, group, 0)
        state.num_registered = match.num_full
        state.num_computed = state.num_cached_tokens = match.num_full * PAGE_SIZE + with_rows * match.num_rows
        self.cache.count(state, match, with_rows)
        if not with_rows:
            return []
        return [
            PageCopy(group, source, state.pages[group][match.num_full])
            for group, source in zip(state.groups, match.sources, strict=True)
        ]

    def could_admit(self, state: RequestState, victims: list[RequestState]) -> bool:
        """Whether the tape would fit, without any sharing, if ``victims`` gave back what they hold."""
        return all(
            state.num_pages_needed <= self.pools.groups[group].num_available + sum(len(v.pages[group]) for v in victims)
            for group in state.groups
        )

    def open_page(self, state: RequestState) -> int | None:
        """For a decoding request: register what is complete and take the page of the newest position in every group.

        Returns None, or, having taken nothing, a group in which no page is available.
        """
        num_tokens = state.num_tokens
        self.register(state, num_tokens - 1)
        needed = -(-num_tokens // PAGE_SIZE)
        lacking = [group for group in state.groups if len(state.pages[group]) < needed]
        for group in lacking:
            if not self.pools.groups[group].num_available:
                return group
        for group in lacking:
            page = self.pools.groups[group].allocate()
            state.pages[group].append(page)
            self.tables[group][state.slot, needed - 1] = page
            self._writes[group, state.slot, needed - 1] = page
        return None

    def register(self, state: RequestState, num_computed: int) -> None:
        """Complete pages become shareable."""
        while (state.num_registered + 1) * PAGE_SIZE <= num_computed:
            self.cache.register(state, state.num_registered)
            state.num_registered += 1

    def release_text(self, state: RequestState) -> None:
        """The text branch will never run again for this request. Call before ``state.end_text``."""
        self.register(state, state.num_computed)
        self.cache.register_rows(state, (TEXT,))
        self.pools.text.release_all(state.pages[TEXT])
        state.pages[TEXT].clear()

    def release(self, state: RequestState, remember: bool = True) -> None:
        """Give back every page; with ``remember`` what was computed since the last ``register`` is cached too."""
        if remember:
            self.register(state, state.num_computed)
            self.cache.register_rows(state, state.groups)
        for pool, pages in zip(self.pools.groups, state.pages, strict=True):
            pool.release_all(pages)
            pages.clear()
        state.num_registered = 0

    def unpin(self) -> None:
        """The step's page copies are done: their sources may be evicted again."""
        for group, page in self._pinned:
            self.pools.groups[group].release(page)
        self._pinned.clear()

    def take_writes(self) -> tuple[BlockWrite, ...]:
        """Block-table writes since the last call, each entry once, in its final state."""
        writes = tuple(BlockWrite(*entry, page) for entry, page in self._writes.items())
        self._writes.clear()
        return writes

    def check(self, running: list[RequestState]) -> None:
        """AssertionError unless pools, cache, block tables and the running requests agree. O(pages)."""
        self.pools.check()
        self.cache.check()
        for group, pool in enumerate(self.pools.groups):
            held: dict[int, int] = {}
            pinned = [page for pinned_group, page in self._pinned if pinned_group == group]
            for page in pinned + [page for state in running for page in state.pages[group]]:
                held[page] = held.get(page, 0) + 1
            for page in range(pool.first_page, pool.first_page + pool.num_pages):
                found, expected = pool.references(page), held.get(page, 0)
                assert found == expected, f"{GROUP_NAMES[group]} page {page}: {found} references, {expected} holders"
            for state in running:
                table = self.tables[group][state.slot, : len(state.pages[group])]
                assert table.tolist() == state.pages[group], f"{state.request_id}: block table of {GROUP_NAMES[group]}"

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

    def _extend(self, state: RequestState, group: int, count: int) -> None:
        allocate = self.pools.groups[group].allocate
        state.pages[group].extend([allocate() for _ in range(count)])

    def _write(self, state: RequestState, group: int, first: int) -> None:
        """Bring the block table up to date from page ``first`` on."""
        table, slot, pages = self.tables[group], state.slot, state.pages[group]
        for index in range(first, len(pages)):
            table[slot, index] = pages[index]
            self._writes[group, slot, index] = pages[index]
