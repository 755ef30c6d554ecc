"""Tensors on disk: where they lie, and mapping one of them into memory.

Every tensor gets a mapping of its own that goes away with the tensor, so the memory of what has been copied out of
a file is given back at once, however large the file is.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CheckpointError

NUM_SHOWN = 5


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: bytes ``[offset, offset + num_bytes)`` of ``path``, contiguous, row-major."""

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, mapped from the file: pages are read when touched and released with the tensor."""
        if not self.num_elements:
            return torch.empty(self.shape, dtype=self.dtype)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        lead = self.offset - start
        with open(self.path, "rb") as file:
            # A private writable mapping: torch wants writable buffers, and nothing is ever written to it.
            mapped = mmap.mmap(file.fileno(), lead + self.num_bytes, access=mmap.ACCESS_COPY, offset=start)
        flat = torch.frombuffer(mapped, dtype=self.dtype, count=self.num_elements, offset=lead)
        return flat.view(self.shape)


def listing(items: Iterable[object], limit: int = NUM_SHOWN) -> str:
    """The first ``limit`` items joined by commas, then how many more there are."""
    shown = [str(item) for item in items]
    more = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {more} more" if more > 0 else "")


def require_file(path: Path) -> None:
    """Raise :class:`CheckpointError` unless ``path`` is a file."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; the official layout has it. Download the model again or check the path"
        )
