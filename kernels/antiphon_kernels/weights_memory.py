"""Memory for weights that every step reads from end to end."""

from __future__ import annotations

import math
import mmap
import threading
from pathlib import Path

import torch

LINE_BYTES = 64
PAGE_BYTES = 2 << 20
BLOCK_BYTES = 64 << 20
"""Of which smaller tensors share one: most matrices are no multiple of a large page."""
APART_BYTES = 1 << 20
"""From which on a tensor is worth memory of its own."""


class WeightsMemory:
    """Hands out tensors that lie in pages of 2 MB where the system has them, which it must be asked for.

    A matrix read as many streams at once touches more pages of 4 KB than the processor remembers, and a weight that waits
    for its page's address waits for memory twice. Memory that no tensor has used yet is not touched. A tensor keeps its block
    alive, and the block is given back when its last tensor is.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
        """A tensor, contents undefined, that begins at a cache line; on another device than a CPU ``torch.empty``'s."""
        if device is not None and device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            if self._used + size > len(self._block):
                self._block, self._used = _new_block(max(size, BLOCK_BYTES)), 0
            part = self._block[self._used : self._used + size]
            self._used = -(-(self._used + size) // LINE_BYTES) * LINE_BYTES
        return part.view(dtype).view(shape)


def empty_apart(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    """As ``torch.empty``, for what is soon replaced: a large tensor's memory goes back to the system with it, where
    an allocator might keep it for smaller ones."""
    size = math.prod(shape) * dtype.itemsize
    if size < APART_BYTES or device is not None and device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return _new_block(size)[:size].view(dtype).view(shape)


def ask_for_large_pages(memory: mmap.mmap) -> None:
    """Where the system may give a mapping such; it need not."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            pass


def has_large_pages() -> bool:
    """Whether this system gives memory large pages."""
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return False


def _new_block(size: int) -> torch.Tensor:
    """At least ``size`` bytes from the beginning of a large page on."""
    pages = -(-size // PAGE_BYTES) + 1
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(pages * PAGE_BYTES, dtype=torch.uint8)
    memory = mmap.mmap(-1, pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ask_for_large_pages(memory)
    block = torch.frombuffer(memory, dtype=torch.uint8)
    return block[-block.data_ptr() % PAGE_BYTES :]
