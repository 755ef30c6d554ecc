"""Gated residual: the branch's result, scaled by the gate of the row's token, added to the stream.

    out[r] = x[r] + gate[r // fpt] * y[r],   fpt = frames_per_token

Source: reference behaviour, section 11. Shapes: x, y [T, H]; gate [T / fpt, H], rows may be strided, last dimension
contiguous; result [T, H] in x's dtype. Product and sum in float32 (float64 for float64), one rounding at the store.
"""

from __future__ import annotations

import torch

from .layer_norm_modulate import accumulation_dtype
from .operator import Operator


def reference(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, frames_per_token: int) -> torch.Tensor:
    """Frames grouped under their token, so that the gate broadcasts."""
    wide = accumulation_dtype(x.dtype)
    grouped = (gate.shape[0], frames_per_token, x.shape[1])
    out = torch.addcmul(x.to(wide).view(grouped), gate.to(wide)[:, None], y.to(wide).view(grouped))
    return out.view(x.shape).to(x.dtype)


def fake(x, y, gate, frames_per_token):
    return torch.empty_like(x)


gate_residual = Operator(
    "gate_residual",
    "(Tensor x, Tensor y, Tensor gate, int frames_per_token) -> Tensor",
    reference=reference,
    fake=fake,
)
