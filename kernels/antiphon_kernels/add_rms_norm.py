"""Residual add fused with the RMS norm that follows it, in branch form.

    r = x + residual;  y = rms_norm(r)

Shapes: x, residual [T, H]; weight [B, H]; result (y, r), both [T, H] in x's dtype. The sum is rounded to x's dtype
before the norm reads it, so fused and unfused agree to the bit.
"""

from __future__ import annotations

import torch

from .operator import Operator
from .rms_norm import reference as norm


def reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, split: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add, then norm."""
    total = x + residual
    return norm(total, weight, split, eps), total


def fake(x, residual, weight, split, eps):
    return torch.empty_like(x), torch.empty_like(x)


add_rms_norm = Operator(
    "add_rms_norm",
    "(Tensor x, Tensor residual, Tensor weight, int split, float eps) -> (Tensor, Tensor)",
    reference=reference,
    fake=fake,
)
