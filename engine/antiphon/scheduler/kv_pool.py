"""Page accounting: who holds which page of the KV cache. No tensors live here.

A page is in exactly one of three states:

* **free**: nobody holds it and its content is worthless;
* **used**: at least one request (or a pending page copy) holds it, ``references > 0``;
* **cached**: nobody holds it, but the prefix cache knows its content; it is given away, oldest first, when the free
  pages run out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from .plan import GROUP_NAMES


class PagePool:
    """Reference-counted pages ``first_page`` .. ``first_page + num_pages - 1`` of one group.

    ``on_evict(pages)`` is called when cached pages are about to be given to somebody else.
    """

    def __init__(self, num_pages: int, first_page: int = 0):
        if num_pages < 1:
            raise ValueError(f"a page pool needs at least one page, got {num_pages}")
        self.num_pages = num_pages
        self.first_page = first_page
        self.on_evict: Callable[[list[int]], None] = lambda pages: None
        self.num_evictions = 0
        self._references = [0] * num_pages
        self._is_cached = bytearray(num_pages)
        self._free = list(range(first_page + num_pages - 1, first_page - 1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages that ``allocate`` can hand out: free and cached ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that nobody holds and the prefix cache remembers."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_available

    def references(self, page: int) -> int:
        """How many holders ``page`` has."""
        return self._references[page - self.first_page]

    def allocate(self) -> int:
        """A page with one holder; the least recently used cached page if none is free. IndexError if none is left."""
        return self.allocate_many(1)[0]

    def allocate_many(self, count: int) -> list[int]:
        """``count`` pages with one holder each, as :meth:`allocate` would give them; IndexError, and none is taken."""
        free = self._free
        if count > len(free):
            self._evict(count - len(free))
        start = len(free) - count
        pages = free[start:]
        del free[start:]
        references, first = self._references, self.first_page
        for page in pages:
            references[page - first] = 1
        return pages

    def _evict(self, count: int) -> None:
        """The ``count`` least recently used cached pages become free."""
        if count > len(self._idle):
            raise IndexError("allocate from an exhausted page pool; check num_available first")
        pages = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._is_cached[page - self.first_page] = 0
        self.num_evictions += count
        self._free += pages
        self.on_evict(pages)

    def share(self, page: int) -> int:
        """Add a holder to a used or cached page; returns the page."""
        index = page - self.first_page
        if self._references[index] == 0:
            assert self._is_cached[index], f"page {page} is free and cannot be shared"
            del self._idle[page]
        self._references[index] += 1
        return page

    def release(self, page: int) -> None:
        """Remove one holder; the last one leaves the page cached if the prefix cache knows it, else free."""
        self.release_all((page,))

    def release_all(self, pages: Sequence[int]) -> None:
        """Release pages of a chain from its end, so that eviction takes the deepest pages of a prefix first."""
        references, first = self._references, self.first_page
        for page in reversed(pages):
            index = page - first
            count = references[index] - 1
            assert count >= 0, f"page {page} was released more often than it was taken"
            references[index] = count
            if count == 0:
                if self._is_cached[index]:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def remember(self, page: int) -> None:
        """The prefix cache now knows the content of a used page."""
        assert self._references[page - self.first_page] > 0, f"page {page} has no holder; it cannot become cached"
        self._is_cached[page - self.first_page] = 1

    def forget(self, page: int) -> None:
        """The prefix cache no longer wants ``page``."""
        self._is_cached[page - self.first_page] = 0
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    def is_cached(self, page: int) -> bool:
        """Whether the prefix cache knows this page."""
        return bool(self._is_cached[page - self.first_page])

    def check(self) -> None:
        """AssertionError unless free + used + cached == total and every page is in exactly one state. O(pages)."""
        used = {self.first_page + index for index, count in enumerate(self._references) if count}
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free), "a page is in the free list twice"
        assert not (used & free or used & idle or free & idle), "a page is in two states"
        assert len(used) + len(free) + len(idle) == self.num_pages, "a page is lost"
        assert all(self._is_cached[page - self.first_page] for page in idle), "an idle page that nobody knows"
        assert not any(self._is_cached[page - self.first_page] for page in free), "a free page counts as cached"
        assert min(self._references) >= 0


class KVPools:
    """The three groups. Text and audio pages share one tensor, so audio ids start where the text ids end."""

    def __init__(self, trunk_pages: int, text_pages: int, audio_pages: int):
        self.groups = (PagePool(trunk_pages), PagePool(text_pages), PagePool(audio_pages, first_page=text_pages))
        self.trunk, self.text, self.audio = self.groups

    @classmethod
    def from_budget(
        cls, num_bytes: int, trunk_page_bytes: int, branch_page_bytes: int, audio_share: float = 1.0
    ) -> KVPools:
        """Split ``num_bytes`` so that text has as many pages as the trunk and audio ``audio_share`` as many.

        Args:
            trunk_page_bytes: bytes of one page over all trunk layers, keys and values.
            branch_page_bytes: the same for one branch.
        """
        pages = int(num_bytes // (trunk_page_bytes + (1 + audio_share) * branch_page_bytes))
        if pages < 1:
            needed = trunk_page_bytes + 2 * branch_page_bytes
            raise ValueError(f"a KV budget of {num_bytes} bytes holds no page; one page in every group takes {needed}")
        return cls(pages, pages, max(1, int(pages * audio_share)))

    def check(self) -> None:
        """Check the books of every group."""
        for pool in self.groups:
            pool.check()

    def counts(self) -> dict[str, dict[str, int]]:
        """Pages by group and state, for metrics."""
        return {
            name: {"total": pool.num_pages, "used": pool.num_used, "cached": pool.num_cached, "free": pool.num_free}
            for name, pool in zip(GROUP_NAMES, self.groups, strict=True)
        }
