"""Layer norm without weights, then the adaLN shift and scale of the row's token.

    y[r] = (x[r] - mean) / sqrt(var + eps) * (1 + scale[r // fpt]) + shift[r // fpt],   fpt = frames_per_token

Source: reference behaviour, section 11 (eps 1e-6). Shapes: x [T, H] contiguous; shift, scale [T / fpt, H], rows may be strided
(they are columns of one packed modulation matrix), last dimension contiguous; result [T, H] in x's dtype. Mean and biased
variance in float32 (float64 for float64), one rounding at the store.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; every other type is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, frames_per_token: int, eps: float
) -> torch.Tensor:
    """Frames grouped under their token, so that shift and scale broadcast."""
    num_rows, hidden = x.shape
    wide = accumulation_dtype(x.dtype)
    normed = F.layer_norm(x.to(wide), (hidden,), eps=eps).view(-1, frames_per_token, hidden)
    modulated = torch.addcmul(shift.to(wide)[:, None], normed, 1 + scale.to(wide)[:, None])
    return modulated.view(num_rows, hidden).to(x.dtype)


def fake(x, shift, scale, frames_per_token, eps):
    return torch.empty_like(x)


layer_norm_modulate = Operator(
    "layer_norm_modulate",
    "(Tensor x, Tensor shift, Tensor scale, int frames_per_token, float eps) -> Tensor",
    reference=reference,
    fake=fake,
)
