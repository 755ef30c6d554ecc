"""A weight file as it is used: one mapping, in pages of 2 MB where the system keeps files in such.

Linux gives a file large pages when its file system can (seen on ext4 of Linux 6.18), the mapping asks, and what the cache already
holds of it came in large pieces. Nobody says whether it will, so a mapping is asked what it got.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from antiphon_kernels.weights_memory import PAGE_BYTES, ask_for_large_pages

from .stored import StoredTensor

SAMPLES = 32
ENOUGH = 0.875
"""Of the large pages asked for, so many suffice: the rest of the cache may have come otherwise."""


class MappedFile:
    """The whole of ``path``, whose tensors are views: pages are read when touched, none is copied. It stays mapped until the last
    tensor goes."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._memory = map_file(file.fileno(), path.stat().st_size)

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """A tensor of this file."""
        flat = torch.frombuffer(self._memory, dtype=stored.dtype, count=stored.num_elements, offset=stored.offset)
        return flat.view(stored.shape)

    def in_large_pages(self) -> bool:
        """Whether the file came in large pages, by touching some; False where the system does not say."""
        content = torch.frombuffer(self._memory, dtype=torch.uint8)
        address = content.data_ptr()
        first, last = -address % PAGE_BYTES, len(content) - PAGE_BYTES
        begins = range(first, last + 1, PAGE_BYTES * max(1, (last - first) // PAGE_BYTES // SAMPLES))
        for begin in begins:
            content[begin].item()
        return _large_bytes(address) >= ENOUGH * PAGE_BYTES * len(begins)


def map_file(descriptor: int, size: int, offset: int = 0) -> mmap.mmap:
    """``size`` bytes of a file, large pages asked for.

    Private and writable, for torch wants writable buffers; nothing is ever written to it.
    """
    memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, offset=offset)
    ask_for_large_pages(memory)
    return memory


def _large_bytes(address: int) -> int:
    """How much of the file mapped at ``address`` this process sees in large pages."""
    inside = False
    try:
        with open("/proc/self/smaps", encoding="utf-8") as file:
            for line in file:
                name, _, rest = line.partition(" ")
                if not name.endswith(":"):
                    begin, _, end = name.partition("-")
                    inside = int(begin, 16) <= address < int(end, 16)
                elif inside and name == "FilePmdMapped:":
                    return int(rest.split()[0]) * 1024
    except OSError:  # not a Linux
        pass
    return 0
