"""How far apart the rows of a matrix lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .network_pass import chosen

LINE_BYTES = 64
WORTH_LINES = 16
"""Lines of a row from which on the distance matters: shorter rows stay in the cache, however they lie."""


def row_distance(inputs: int, dtype: torch.dtype, device: torch.device) -> int:
    """Elements from a row to the next: ``inputs``, or where kernels read several rows as they lie side by side an odd number of cache lines.

    A tile is one line of each of 16 rows. The first-level cache keeps a line in one of 64 sets by its number modulo 64, so rows
    64 lines apart would share a set, which holds fewer of them than two tiles have; an odd distance gives each its own.
    """
    if dtype != torch.bfloat16 or device.type != "cpu" or not chosen():
        return inputs
    of_line = LINE_BYTES // dtype.itemsize
    lines, rest = divmod(inputs, of_line)
    return inputs if rest or lines < WORTH_LINES or lines % 2 else inputs + of_line


def empty_rows(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    allocate: Callable[..., torch.Tensor] = torch.empty,
) -> torch.Tensor:
    """A matrix [out, in], not initialised, with its rows at :func:`row_distance`, in memory of ``allocate``."""
    outputs, inputs = shape
    return allocate((outputs, row_distance(inputs, dtype, device)), dtype=dtype, device=device)[:, :inputs]
