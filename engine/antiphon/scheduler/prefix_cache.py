"""Prefix cache: which pages hold the keys and values of which token prefix, per group.

What a page contains is determined by the pages before it and by its own rows: both token ids of its 16 positions, and for
positions with continuous features the content of the audio behind them. So the index is a tree: below the root of a
salt, every node is a page, found by its rows, byte for byte; no two contents can be taken for each other. A node says,
group by group, which page holds its content: a position whose text branch was skipped has no text page, a text-only
request leaves no audio pages. A lookup takes the groups that the request needs; the first page that lacks one of them
ends the match, because the upper branches need the trunk's hidden states of every position they compute.

The filled rows of the last, incomplete page are cached too. Such a page (or a complete one of which only some rows
match) is never shared but copied, since the request will write the following rows itself.

What a request generates is registered late: when its ring is full, when it ends, or when a lookup comes to the node
behind which its unregistered pages belong (``running``). So a decode step costs nothing here, and no hit is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from .kv_pool import KVPools
from .plan import GROUP_NAMES, PAGE_SIZE
from .request_state import ROW_BYTES, RequestState

MIN_COPIED_ROWS = 4
MAX_SIBLINGS = 16
PAGE_BYTES = PAGE_SIZE * ROW_BYTES
NO_PAGES = [None, None, None]


class PrefixMatch(NamedTuple):
    """``num_full`` pages can be shared; after them ``num_rows`` more rows can be had by copying ``sources[group]``.

    ``node``: the last of the shared pages, or the root of the request's salt; None if nothing is known for that salt.
    """

    pages: tuple[list[int], ...]
    num_full: int
    num_rows: int
    sources: tuple[int, ...]
    node: CachedPage | None


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


class CachedPage:
    """A node: content that follows its parent's, as bytes, and the page that holds it in each group (None: not cached).

    ``running``: the running requests whose first unregistered page follows this one. A node stays in the tree as long as
    it has a page, a child or such a request. The root of a salt has no parent; its ``rows`` are the salt.
    """

    __slots__ = ("children", "pages", "parent", "rows", "running")

    def __init__(self, parent: CachedPage | None, rows: bytes):
        self.parent = parent
        self.rows = rows
        self.pages: list[int | None] = [None, None, None]
        self.children: dict[bytes, CachedPage] = {}
        self.running: set[RequestState] | None = None

    @property
    def is_needed(self) -> bool:
        """Whether the tree would lose anything with this node."""
        return bool(self.children or self.running or self.pages != NO_PAGES)

    def child(self, rows: bytes) -> CachedPage:
        """The node of the page that follows, made if it is not there."""
        found = self.children.get(rows)
        if found is None:
            found = self.children[rows] = CachedPage(self, rows)
        return found


class PrefixCache:
    """Index over the pages of ``pools``; the pools own the pages and decide what is evicted."""

    def __init__(self, pools: KVPools, enabled: bool = True):
        self.pools = pools
        self.enabled = enabled
        self.statistics = CacheStatistics()
        self._roots: dict[bytes, CachedPage] = {}
        self._nodes: tuple[dict[int, CachedPage], ...] = ({}, {}, {})
        for group, pool in enumerate(pools.groups):
            pool.on_evict = lambda pages, group=group: self._evict(group, pages)

    def __len__(self) -> int:
        """Distinct contents with a page."""
        return len({id(node) for nodes in self._nodes for node in nodes.values()})

    def match(self, state: RequestState) -> PrefixMatch:
        """Longest cached prefix of the tape in all of the request's groups; the last position is always left over."""
        node = self._roots.get(state.cache_salt) if self.enabled else None
        pages: tuple[list[int], ...] = ([], [], [])
        if node is None:
            return PrefixMatch(pages, 0, 0, (), None)
        groups, limit = state.groups, state.num_tokens - 1
        data = state.row_bytes(0, limit)
        num_full = 0
        while num_full < limit // PAGE_SIZE:
            found = self._follow(node, data[num_full * PAGE_BYTES : (num_full + 1) * PAGE_BYTES], groups)
            if found is None:
                break
            node = found
            for group in groups:
                pages[group].append(node.pages[group])
            num_full += 1
        start = num_full * PAGE_BYTES
        num_rows, sources = self._match_rows(node, data[start : start + PAGE_BYTES], groups)
        return PrefixMatch(pages, num_full, num_rows, sources, node)

    def enter(self, state: RequestState, match: PrefixMatch) -> None:
        """The request takes the shared pages of a match and begins to run: what it computes follows ``match.node``."""
        if self.enabled:
            state.num_registered = match.num_full
            self._move(
                state, match.node or self._roots.setdefault(state.cache_salt, CachedPage(None, state.cache_salt))
            )

    def leave(self, state: RequestState) -> None:
        """The request runs no more; what it has not registered is not cached."""
        if self.enabled:
            self._move(state, None)
            state.num_registered = 0

    def count(self, state: RequestState, match: PrefixMatch, with_rows: bool) -> None:
        """Account for a match that was used."""
        self.statistics.lookups += 1
        self.statistics.tokens_looked_up += state.num_tokens
        self.statistics.tokens_shared += match.num_full * PAGE_SIZE
        self.statistics.tokens_copied += match.num_rows if with_rows else 0

    def register(self, state: RequestState, num_computed: int) -> None:
        """Remember the complete pages of a running request in its active groups, unless their content is known already."""
        first, last = state.num_registered, num_computed // PAGE_SIZE
        if not self.enabled or last <= first:
            return
        data = state.row_bytes(first * PAGE_SIZE, (last - first) * PAGE_SIZE)
        node = state.cached_page
        path = []
        for start in range(0, len(data), PAGE_BYTES):
            node = node.child(data[start : start + PAGE_BYTES])
            path.append(node)
        for group in state.groups:
            self._hold(group, path, state.blocks.pages(group, state.slot, first)[: len(path)])
        state.num_registered = last
        self._move(state, node)

    def register_rows(self, state: RequestState, groups: tuple[int, ...]) -> None:
        """Remember the computed rows of the request's last, incomplete page, if any; the complete ones are registered."""
        index, num_rows = divmod(state.num_computed, PAGE_SIZE)
        if self.enabled and num_rows >= MIN_COPIED_ROWS:
            node = state.cached_page.child(state.row_bytes(index * PAGE_SIZE, num_rows))
            for group in groups:
                self._hold(group, [node], [state.blocks.page(group, state.slot, index)])

    def clear(self) -> None:
        """Forget everything, e.g. after weights changed."""
        for group, nodes in enumerate(self._nodes):
            pages = list(nodes)
            for page in pages:
                self.pools.groups[group].forget(page)
            self._drop(group, pages)

    def check(self, running: Sequence[RequestState] = ()) -> None:
        """AssertionError unless index, pools and the running requests agree. O(nodes)."""
        for group, (nodes, pool) in enumerate(zip(self._nodes, self.pools.groups, strict=True)):
            assert all(pool.is_cached(page) for page in nodes), f"{GROUP_NAMES[group]}: an indexed page is not cached"
            first = pool.first_page
            cached = sum(pool.is_cached(page) for page in range(first, first + pool.num_pages))
            assert cached == len(nodes), f"{GROUP_NAMES[group]}: {cached} pages cached, {len(nodes)} indexed"
        found = 0
        todo = list(self._roots.values())
        for node in todo:
            assert node.is_needed, "a node that nobody needs"
            assert all(child.parent is node and child.rows == rows for rows, child in node.children.items())
            held = [(group, page) for group, page in enumerate(node.pages) if page is not None]
            assert all(self._nodes[group].get(page) is node for group, page in held), "a stale node"
            assert all(state.cached_page is node for state in node.running or ()), "a request is in two places"
            found += len(held)
            todo += node.children.values()
        assert found == sum(len(nodes) for nodes in self._nodes), "a page is indexed outside of the tree"
        if self.enabled:
            assert all(state in (state.cached_page.running or ()) for state in running)
            assert sum(len(node.running or ()) for node in todo) == len(running), "a request that ended is still there"

    def _follow(self, node: CachedPage, rows: bytes, groups: tuple[int, ...]) -> CachedPage | None:
        """The page with these rows behind ``node``, if every group has it."""
        for attempt in range(2):
            found = node.children.get(rows)
            if found is not None and None not in [found.pages[group] for group in groups]:
                return found
            if attempt or not self._settle(node):
                return None

    def _settle(self, node: CachedPage) -> bool:
        """Register what decoding requests have computed behind ``node`` since; whether there was anything."""
        behind = [state for state in node.running or () if state.table is not None]
        late = [state for state in behind if state.num_computed // PAGE_SIZE > state.num_registered]
        for state in sorted(late, key=lambda state: state.sequence_number):
            self.register(state, state.num_computed)
        return bool(late)

    def _match_rows(self, node: CachedPage, wanted: bytes, groups: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Most rows behind ``node`` that some cached page holds in every group; the groups' sources may differ."""
        if len(wanted) < MIN_COPIED_ROWS * ROW_BYTES:
            return 0, ()
        self._settle(node)
        best = dict.fromkeys(groups, (0, -1))
        for child in islice(reversed(node.children.values()), MAX_SIBLINGS):
            common = _common_rows(child.rows, wanted)
            for group in groups:
                page = child.pages[group]
                if page is not None and common > best[group][0]:
                    best[group] = (common, page)
        num_rows = min(common for common, _ in best.values())
        if num_rows < MIN_COPIED_ROWS:
            return 0, ()
        return num_rows, tuple(page for _, page in best.values())

    def _hold(self, group: int, path: list[CachedPage], pages: list[int]) -> None:
        """The nodes' contents are in these pages, unless another page of the group is known for one."""
        nodes, remember = self._nodes[group], self.pools.groups[group].remember
        for node, page in zip(path, pages, strict=True):
            if node.pages[group] is None:
                node.pages[group] = page
                nodes[page] = node
                remember(page)

    def _move(self, state: RequestState, node: CachedPage | None) -> None:
        """The request's unregistered pages follow another node, or (None) it runs no more."""
        before, state.cached_page = state.cached_page, node
        if node is not None:
            node.running = node.running or set()
            node.running.add(state)
        if before is not None:
            before.running.discard(state)
            self._prune(before)

    def _evict(self, group: int, pages: list[int]) -> None:
        self.statistics.evicted_pages[group] += len(pages)
        self._drop(group, pages)

    def _drop(self, group: int, pages: list[int]) -> None:
        """Remove pages from the index."""
        nodes = self._nodes[group]
        for page in pages:
            node = nodes.pop(page)
            node.pages[group] = None
            self._prune(node)

    def _prune(self, node: CachedPage) -> None:
        """Take a node that nobody needs out of the tree, and then its parents likewise."""
        while not node.is_needed:
            parent = node.parent
            if parent is None:
                del self._roots[node.rows]
                return
            del parent.children[node.rows]
            node = parent


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
