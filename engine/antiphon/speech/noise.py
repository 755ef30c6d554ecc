"""Where the initial states of the ODE come from: a generator per stream, or arrays given by the caller."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from ..errors import InputError


class NoiseSource:
    """One array [rows, num_mels] of float32 per chunk, in order.

    Drawn on the CPU by a generator of the stream's own, so a stream's noise depends on its seed alone, not on the device
    or the batch. ``draw`` returns the same array until ``commit``, so that a chunk which failed can be tried again.

    Args:
        num_mels: columns of every array.
        seed: of the generator; None draws one, which :attr:`seed` tells.
        given: arrays to use instead of the generator.
    """

    def __init__(self, num_mels: int, seed: int | None = None, given: Iterable[np.ndarray] | None = None):
        if seed is not None and given is not None:
            raise InputError("noise and seed exclude each other; pass one of them")
        self.num_mels = num_mels
        self.seed = None
        self._given: Iterator | None = None
        self._pending: torch.Tensor | None = None
        if given is not None:
            self._given = iter(given)
        else:
            self.seed = secrets.randbits(63) if seed is None else int(seed)
            self._generator = torch.Generator().manual_seed(self.seed % 2**64)

    def draw(self, num_rows: int) -> torch.Tensor:
        """Noise of the current chunk, float32 [num_rows, num_mels] on the CPU; InputError if a given array does not fit."""
        if self._pending is None:
            self._pending = self._next(num_rows)
        if tuple(self._pending.shape) != (num_rows, self.num_mels):
            raise InputError(
                f"noise of a chunk has shape {tuple(self._pending.shape)}, expected {(num_rows, self.num_mels)}"
            )
        return self._pending

    def commit(self) -> None:
        """The chunk is done; the next :meth:`draw` belongs to the next chunk."""
        self._pending = None

    def _next(self, num_rows: int) -> torch.Tensor:
        if self._given is None:
            return torch.randn(num_rows, self.num_mels, generator=self._generator)
        try:
            return torch.as_tensor(np.array(next(self._given), dtype=np.float32))
        except StopIteration:
            raise InputError(f"noise has too few arrays: one of {num_rows} rows is needed for the next chunk") from None
