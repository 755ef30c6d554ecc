"""The key/value windows of all streams: storage in slots, each a ring buffer of the newest rows."""

from __future__ import annotations

import numpy as np
import torch

from ..config import FlowConfig
from ..errors import EngineError
from ..models.flow_dit import FlowWindow

WINDOW_ROWS = 900


class WindowSlot:
    """One stream's share of the window: ``num_rows`` valid rows; the oldest are overwritten first."""

    def __init__(self, index: int, capacity: int):
        self.index = index
        self.capacity = capacity
        self.num_rows = 0
        self._head = 0

    def places(self, num_new: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of ``num_new`` new rows to keep (the newest), and where: slot * capacity + row; int64, equal lengths."""
        kept = np.arange(max(0, num_new - self.capacity), num_new)
        return kept, self.index * self.capacity + (self._head + kept) % self.capacity

    def advance(self, num_new: int) -> None:
        """``num_new`` rows have been written at :meth:`places`."""
        self.num_rows = min(self.capacity, self.num_rows + num_new)
        self._head = (self._head + num_new) % self.capacity

    def clear(self) -> None:
        """Forget all rows."""
        self.num_rows = self._head = 0


class WindowPool:
    """Slots for ``num_slots`` streams. Free and used slots always add up to ``num_slots``."""

    def __init__(self, config: FlowConfig, num_slots: int, dtype: torch.dtype, device):
        self.window = FlowWindow.empty(config, num_slots, WINDOW_ROWS, dtype, device)
        self.num_slots = num_slots
        self._free = list(reversed(range(num_slots)))

    @property
    def num_free(self) -> int:
        """Slots that no stream holds."""
        return len(self._free)

    def acquire(self) -> WindowSlot:
        """An empty slot; EngineError if all are taken."""
        if not self._free:
            raise EngineError(f"all {self.num_slots} speech streams are in use; close one or raise max_streams")
        return WindowSlot(self._free.pop(), WINDOW_ROWS)

    def release(self, slot: WindowSlot) -> None:
        """Give a slot back; its contents are not needed any more."""
        if slot.index in self._free:
            raise ValueError(f"slot {slot.index} is free already")
        self._free.append(slot.index)
