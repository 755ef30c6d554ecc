"""Root-mean-square norm in branch form.

    y = weight[branch] * round(x / sqrt(mean(x^2) + eps))

The mean of squares is taken in float32 and the normalised value is rounded to the input's dtype before it is
multiplied by the weight, as Qwen2 does. Shapes: x [T, H], weight [B, H], result [T, H] in x's dtype.
"""

from __future__ import annotations

import torch

from .branches import check_split, per_branch
from .operator import Operator


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """One branch: x [T, H], weight [H]."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def reference(x: torch.Tensor, weight: torch.Tensor, split: int, eps: float) -> torch.Tensor:
    """The formula above, branch by branch."""
    check_split(weight, x.shape[0], split)
    return per_branch(lambda rows, branch: normalise(rows, weight[branch], eps), x, split)


def fake(x, weight, split, eps):
    return torch.empty_like(x)


rms_norm = Operator(
    "rms_norm", "(Tensor x, Tensor weight, int split, float eps) -> Tensor", reference=reference, fake=fake
)
