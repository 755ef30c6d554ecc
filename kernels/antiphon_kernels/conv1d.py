"""1-D convolution that keeps the length, fused with its bias and the residual that it is added to.

    out[n, o, t] = residual[n, o, t] + bias[o] + sum_{c, j} weight[o, c, j] x[n, c, t + dilation (j - (k - 1) / 2)]

x counts as zero outside. Source: reference behaviour, section 13 (the vocoder's residual blocks). Shapes: x [N, C, T];
weight [O, C, k], k odd; bias [O] or None; residual [N, O, T] or None; result [N, O, T] in x's dtype. The convolution
with its bias is rounded to x's dtype before the residual is added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, dilation: int
) -> torch.Tensor:
    """PyTorch's convolution, then the sum."""
    out = F.conv1d(x, weight, bias, padding=(weight.shape[2] - 1) // 2 * dilation, dilation=dilation)
    return out if residual is None else residual + out


def fake(x, weight, bias, residual, dilation):
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2])


conv1d = Operator(
    "conv1d",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int dilation) -> Tensor",
    reference=reference,
    fake=fake,
)
