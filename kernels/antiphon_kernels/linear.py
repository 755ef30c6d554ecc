"""Linear map in branch form.

    y = x @ weight[branch].T + bias[branch]

Shapes: x [T, in]; weight [B, out, in]; bias [B, out] or None; result [T, out] in x's dtype, accumulated in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .branches import check_split, per_branch
from .operator import Operator


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """One matrix product per branch that has rows."""
    check_split(weight, x.shape[0], split)
    return per_branch(lambda rows, b: F.linear(rows, weight[b], None if bias is None else bias[b]), x, split)


def fake(x, weight, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear = Operator(
    "linear", "(Tensor x, Tensor weight, Tensor? bias, int split) -> Tensor", reference=reference, fake=fake
)
