"""Native layer norm with adaLN modulation, and the gated residual that follows it."""

from __future__ import annotations

import torch

from .. import _native
from ..gate_residual import gate_residual
from ..layer_norm_modulate import layer_norm_modulate
from .arguments import DTYPES, fits


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Rows may be strided, their elements may not."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


@layer_norm_modulate.backend("native", devices=("cpu",), supports=lambda x, shift, scale, f, eps: fits(x, shift, scale))
def native_layer_norm_modulate(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, frames_per_token: int, eps: float
) -> torch.Tensor:
    """x [T, H]; shift, scale [T / frames_per_token, H] → [T, H]."""
    x, shift, scale = x.contiguous(), _rows(shift), _rows(scale)
    out = torch.empty_like(x)
    _native.layer_norm_modulate(
        DTYPES[x.dtype],
        *(t.data_ptr() for t in (x, shift, scale, out)),
        shift.stride(0),
        scale.stride(0),
        *x.shape,
        frames_per_token,
        eps,
    )
    return out


@gate_residual.backend("native", devices=("cpu",), supports=lambda x, y, gate, f: fits(x, y, gate))
def native_gate_residual(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, frames_per_token: int) -> torch.Tensor:
    """x, y [T, H]; gate [T / frames_per_token, H] → [T, H]."""
    x, y, gate = x.contiguous(), y.contiguous(), _rows(gate)
    out = torch.empty_like(x)
    _native.gate_residual(
        DTYPES[x.dtype], *(t.data_ptr() for t in (x, y, gate, out)), gate.stride(0), *x.shape, frames_per_token
    )
    return out
