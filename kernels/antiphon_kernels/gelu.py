"""GELU of the speech networks, element by element.

    y = x Phi(x), or with tanh   y = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

Source: reference behaviour, sections 5.4 (exact) and 11 (tanh). x of any shape and float dtype; result contiguous, in x's
dtype, computed in float32 (float64 for float64), one rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator


def reference(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    """PyTorch's own."""
    return F.gelu(x.contiguous(), approximate="tanh" if tanh else "none")


def fake(x, tanh):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


gelu = Operator("gelu", "(Tensor x, bool tanh) -> Tensor", reference=reference, fake=fake)
