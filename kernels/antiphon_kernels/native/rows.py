"""Rows of matrices in memory."""

from __future__ import annotations

import torch

from .arguments import has_rows
from .network_pass import chosen

LINE_BYTES = 64
WORTH_LINES = 16
"""Lines of a row from which on the distance matters: shorter rows stay in the cache, however they lie."""


def spread_rows(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` with rows an odd number of cache lines apart, where tiles read it as it lies; a copy unless it is so already.

    A tile is one line of each of 16 rows. The first-level cache keeps a line in one of 64 sets by its number modulo 64, so rows
    64 lines apart would share a set, which holds fewer of them than two tiles have; an odd distance gives each its own.

    Args:
        weight: bfloat16 [out, in] with contiguous rows; of other kinds, or without tiles, it is returned as it is.
    """
    if weight.ndim != 2 or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return weight
    if not chosen() or not has_rows(weight):
        return weight
    of_line = LINE_BYTES // weight.element_size()
    lines, rest = divmod(weight.stride(0), of_line)
    if rest or lines < WORTH_LINES or lines % 2:
        return weight
    rows, inputs = weight.shape
    return weight.new_empty(rows, inputs + of_line)[:, :inputs].copy_(weight)
