"""The branch form of an operator: rows [0, split) use weights 0 (text), rows [split, T) use weights 1 (audio)."""

from __future__ import annotations

from collections.abc import Callable

import torch


def check_split(weight: torch.Tensor, num_rows: int, split: int) -> None:
    """A single-branch weight takes every row; raises ValueError otherwise (it is always our own mistake)."""
    if weight.shape[0] == 1 and split != num_rows or not 0 <= split <= num_rows:
        raise ValueError(f"split {split} does not fit {num_rows} rows and {weight.shape[0]} branches")


def per_branch(function: Callable[[torch.Tensor, int], torch.Tensor], x: torch.Tensor, split: int) -> torch.Tensor:
    """Apply ``function(rows, branch)`` to the rows of each branch that has any, and join the results."""
    if split == x.shape[0]:
        return function(x, 0)
    if split == 0:
        return function(x, 1)
    return torch.cat((function(x[:split], 0), function(x[split:], 1)))
