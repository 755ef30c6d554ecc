"""Block tables: which pages a slot holds, in order of position. The only place where a running request's pages are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .plan import TableWrite


class BlockTables:
    """``tables[group]`` is int32 [max_sequences, max_pages], row = slot; ``counts`` int64 [groups, max_sequences].

    The first ``counts[group, slot]`` entries of a row are the slot's pages; what stands behind them is stale.
    """

    def __init__(self, num_groups: int, max_sequences: int, max_pages: int):
        self.tables = tuple(np.zeros((max_sequences, max_pages), np.int32) for _ in range(num_groups))
        self.counts = np.zeros((num_groups, max_sequences), np.int64)
        self._writes: list[TableWrite] = []

    def pages(self, group: int, slot: int, first: int = 0) -> list[int]:
        """The slot's pages from index ``first`` on."""
        return self.tables[group][slot, first : self.counts[group, slot]].tolist()

    def page(self, group: int, slot: int, index: int) -> int:
        """One page of a slot."""
        assert index < self.counts[group, slot], f"slot {slot} does not hold a page {index}"
        return int(self.tables[group][slot, index])

    def extend(self, group: int, slot: int, pages: Sequence[int]) -> None:
        """More pages for one slot."""
        start = int(self.counts[group, slot])
        stop = start + len(pages)
        self.tables[group][slot, start:stop] = pages
        self.counts[group, slot] = stop
        self._writes.append(
            TableWrite(group, slot, np.arange(start, stop), self.tables[group][slot, start:stop].copy())
        )

    def append(self, group: int, slots: np.ndarray, pages: Sequence[int]) -> None:
        """One more page for each of ``slots`` (distinct)."""
        indices = self.counts[group, slots]
        taken = np.array(pages, np.int32)
        self.tables[group][slots, indices] = taken
        self.counts[group, slots] = indices + 1
        self._writes.append(TableWrite(group, slots, indices, taken))

    def clear(self, group: int, slot: int) -> list[int]:
        """The slot gives up its pages; returns them."""
        pages = self.pages(group, slot)
        self.counts[group, slot] = 0
        return pages

    def take_writes(self) -> tuple[TableWrite, ...]:
        """What was written since the last call, oldest first; a later write of an entry replaces an earlier one."""
        writes, self._writes = tuple(self._writes), []
        return writes
