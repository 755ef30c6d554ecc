"""Prefix cache: which pages hold the keys and values of which token prefix, per group.

A page's key is a hash chained over everything that determines its content: the key of the page before it, both token
ids of its 16 positions, and for positions with continuous features the content of the audio behind them. One entry per
key says, group by group, which page holds it: a position whose text branch was skipped has no text page, a text-only
request leaves no audio pages. A lookup takes the groups that the request needs; the first page that lacks one of them
ends the match, because the upper branches need the trunk's hidden states of every position they compute.

The filled rows of the last, incomplete page are cached too. Such a page (or a complete one of which only some rows
match) is never shared but copied, since the request will write the following rows itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .kv_pool import KVPools
from .plan import GROUP_NAMES, PAGE_SIZE
from .request_state import ROW_BYTES, RequestState, chain_key

MIN_COPIED_ROWS = 4
MAX_SIBLINGS = 16


class PrefixMatch(NamedTuple):
    """``num_full`` pages can be shared; after them ``num_rows`` more rows can be had by copying ``sources[group]``."""

    pages: tuple[tuple[int, ...], ...]
    num_full: int
    num_rows: int
    sources: tuple[int, ...]


@dataclass
class CacheStatistics:
    """Counters since start, in prompt positions unless named otherwise."""

    lookups: int = 0
    tokens_looked_up: int = 0
    tokens_shared: int = 0
    tokens_copied: int = 0
    evicted_pages: list[int] = field(default_factory=lambda: [0, 0, 0])

    @property
    def hit_rate(self) -> float:
        """Share of looked-up positions that need no computing."""
        return (self.tokens_shared + self.tokens_copied) / max(1, self.tokens_looked_up)


class _Entry:
    """Cached content of one page: ``rows`` as bytes, and the page that holds it in each group (None: not cached)."""

    __slots__ = ("key", "pages", "parent", "rows")

    def __init__(self, key: bytes, parent: bytes, rows: bytes):
        self.key = key
        self.parent = parent
        self.rows = rows
        self.pages: list[int | None] = [None, None, None]


class PrefixCache:
    """Index over the pages of ``pools``; the pools own the pages and decide what is evicted."""

    def __init__(self, pools: KVPools, enabled: bool = True):
        self.pools = pools
        self.enabled = enabled
        self.statistics = CacheStatistics()
        self._entries: dict[bytes, _Entry] = {}
        self._children: dict[bytes, dict[bytes, _Entry]] = {}
        self._by_page: tuple[dict[int, _Entry], ...] = ({}, {}, {})
        for group, pool in enumerate(pools.groups):
            pool.on_evict = lambda page, group=group: self._evict(group, page)

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, state: RequestState) -> PrefixMatch:
        """Longest cached prefix of the tape in all of the request's groups; the last position is always left over."""
        groups = state.groups
        empty = ((), (), ())
        if not self.enabled:
            return PrefixMatch(empty, 0, 0, ())
        limit = state.num_tokens - 1
        pages: tuple[list[int], ...] = ([], [], [])
        num_full = 0
        while num_full < limit // PAGE_SIZE:
            entry = self._entries.get(state.page_key(num_full))
            if entry is None or any(entry.pages[group] is None for group in groups):
                break
            for group in groups:
                pages[group].append(entry.pages[group])
            num_full += 1
        num_rows, sources = self._match_rows(state, num_full, min(limit - num_full * PAGE_SIZE, PAGE_SIZE))
        return PrefixMatch(tuple(tuple(p) for p in pages), num_full, num_rows, sources)

    def count(self, state: RequestState, match: PrefixMatch, with_rows: bool) -> None:
        """Account for a match that was used."""
        self.statistics.lookups += 1
        self.statistics.tokens_looked_up += state.num_tokens
        self.statistics.tokens_shared += match.num_full * PAGE_SIZE
        self.statistics.tokens_copied += match.num_rows if with_rows else 0

    def register(self, state: RequestState, index: int) -> None:
        """Remember the complete page ``index`` of a request in its active groups, unless its content is known already."""
        if self.enabled:
            rows = state.row_bytes(index * PAGE_SIZE, PAGE_SIZE)
            self._store(state, index, state.groups, state.page_key(index), rows)

    def register_rows(self, state: RequestState, groups: tuple[int, ...]) -> None:
        """Remember the computed rows of the request's last, incomplete page, if any."""
        index, num_rows = divmod(state.num_computed, PAGE_SIZE)
        if self.enabled and num_rows >= MIN_COPIED_ROWS:
            rows = state.row_bytes(index * PAGE_SIZE, num_rows)
            self._store(state, index, groups, chain_key(state.parent_key(index), rows), rows)

    def clear(self) -> None:
        """Forget everything, e.g. after weights changed."""
        for group, by_page in enumerate(self._by_page):
            for page in list(by_page):
                self.pools.groups[group].forget(page)
                self._drop(group, page)

    def check(self) -> None:
        """AssertionError unless index and pools agree. O(entries)."""
        for group, (by_page, pool) in enumerate(zip(self._by_page, self.pools.groups, strict=True)):
            assert all(pool.is_cached(page) for page in by_page), f"{GROUP_NAMES[group]}: an indexed page is not cached"
            first = pool.first_page
            cached = sum(pool.is_cached(page) for page in range(first, first + pool.num_pages))
            assert cached == len(by_page), f"{GROUP_NAMES[group]}: {cached} pages cached, {len(by_page)} indexed"
            assert all(entry.pages[group] == page for page, entry in by_page.items())
        for entry in self._entries.values():
            held = [(group, page) for group, page in enumerate(entry.pages) if page is not None]
            assert held and all(self._by_page[group].get(page) is entry for group, page in held), "a stale entry"
        assert sum(len(children) for children in self._children.values()) == len(self._entries)

    def _match_rows(self, state: RequestState, num_full: int, limit: int) -> tuple[int, tuple[int, ...]]:
        """Most rows after ``num_full`` pages that some cached page holds in every group; the groups' sources may differ."""
        siblings = self._children.get(state.parent_key(num_full))
        if not siblings or limit < MIN_COPIED_ROWS:
            return 0, ()
        wanted = state.row_bytes(num_full * PAGE_SIZE, limit)
        best: dict[int, tuple[int, int]] = {}
        for entry in list(siblings.values())[-MAX_SIBLINGS:]:
            common = _common_rows(entry.rows, wanted)
            for group in state.groups:
                page = entry.pages[group]
                if page is not None and common > best.get(group, (0, 0))[0]:
                    best[group] = (common, page)
        num_rows = min((best.get(group, (0, 0))[0] for group in state.groups), default=0)
        if num_rows < MIN_COPIED_ROWS:
            return 0, ()
        return num_rows, tuple(best[group][1] for group in state.groups)

    def _store(self, state: RequestState, index: int, groups: tuple[int, ...], key: bytes, rows: bytes) -> None:
        entry = self._entries.get(key) or self._insert(key, state.parent_key(index), rows)
        for group in groups:
            page = state.pages[group][index]
            if entry.pages[group] is None:
                entry.pages[group] = page
                self._by_page[group][page] = entry
                self.pools.groups[group].remember(page)

    def _insert(self, key: bytes, parent: bytes, rows: bytes) -> _Entry:
        entry = self._entries[key] = _Entry(key, parent, rows)
        self._children.setdefault(parent, {})[key] = entry
        return entry

    def _evict(self, group: int, page: int) -> None:
        self.statistics.evicted_pages[group] += 1
        self._drop(group, page)

    def _drop(self, group: int, page: int) -> None:
        """Remove a page from the index; the entry goes with its last page."""
        entry = self._by_page[group].pop(page)
        entry.pages[group] = None
        if entry.pages == [None, None, None]:
            del self._entries[entry.key]
            siblings = self._children[entry.parent]
            del siblings[entry.key]
            if not siblings:
                del self._children[entry.parent]


def _common_rows(first: bytes, second: bytes) -> int:
    """Number of equal leading rows of two row byte strings."""
    length = min(len(first), len(second)) // ROW_BYTES
    if first[: length * ROW_BYTES] == second[: length * ROW_BYTES]:
        return length
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if first[: middle * ROW_BYTES] == second[: middle * ROW_BYTES]:
            low = middle
        else:
            high = middle
    return low
