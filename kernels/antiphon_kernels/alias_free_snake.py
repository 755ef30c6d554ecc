"""BigVGAN's anti-aliased SnakeBeta: up by 2, activate, down by 2; the 2x signal need never reach memory.

    up[u]  = 2 sum_i xr[i] f_up[u + 5 - 2i]           x repeated beyond its ends: xr[i] = x[clamp(i, 0, T-1)]
    act[u] = up[u] + inv_beta sin^2(alpha up[u])      alpha, inv_beta per channel
    out[t] = sum_k f_down[k] act[clamp(2t + k - 5, 0, 2T-1)]

so out[t] sees x[t-5 .. t+5]. The *activated* signal is repeated at the ends, not the input (the fused public CUDA kernel
differs there). Source: reference behaviour, section 13. Shapes: x [N, C, T], T >= 1; alpha [C] (already exponentiated),
inv_beta [C] = 1 / (exp(beta) + 1e-9); up_filter, down_filter [12]; result [N, C, T] in x's dtype. Everything between load
and store in float32 (float64 for float64); alpha * up can be large, so sin needs a true range reduction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .layer_norm_modulate import accumulation_dtype
from .operator import Operator

TAPS = 12
CONTEXT = 5
"""An output sample depends on the input samples within this distance."""


def upsample(x: torch.Tensor, up_filter: torch.Tensor) -> torch.Tensor:
    """x [N, C, T] → [N, C, 2T]: edges repeated, zeros inserted, low-pass filtered."""
    channels = x.shape[1]
    padded = F.pad(x, (5, 5), mode="replicate")
    filters = up_filter.view(1, 1, TAPS).expand(channels, 1, TAPS)
    return 2 * F.conv_transpose1d(padded, filters, stride=2, groups=channels)[..., 15:-15]


def downsample(x: torch.Tensor, down_filter: torch.Tensor) -> torch.Tensor:
    """x [N, C, 2T] → [N, C, T]: edges repeated, low-pass filtered, every other sample."""
    channels = x.shape[1]
    padded = F.pad(x, (5, 6), mode="replicate")
    return F.conv1d(padded, down_filter.view(1, 1, TAPS).expand(channels, 1, TAPS), stride=2, groups=channels)


def snake(x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor) -> torch.Tensor:
    """x [N, C, T] + inv_beta sin^2(alpha x)."""
    return torch.addcmul(x, inv_beta[:, None], torch.sin(x * alpha[:, None]).square())


def reference(
    x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor
) -> torch.Tensor:
    """The three stages one after the other."""
    wide = accumulation_dtype(x.dtype)
    activated = snake(upsample(x.to(wide), up_filter.to(wide)), alpha.to(wide), inv_beta.to(wide))
    return downsample(activated, down_filter.to(wide)).to(x.dtype)


def fake(x, alpha, inv_beta, up_filter, down_filter):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


alias_free_snake = Operator(
    "alias_free_snake",
    "(Tensor x, Tensor alpha, Tensor inv_beta, Tensor up_filter, Tensor down_filter) -> Tensor",
    reference=reference,
    fake=fake,
)
