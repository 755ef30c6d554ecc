"""Native 1-D convolution: worth it where the CPU has AMX and there are channels to fill its tiles; else PyTorch's.

In float32 both operands are split into two bfloat16 parts; the result is within 1e-5 of the largest output.
"""

from __future__ import annotations

import torch

from .. import _native
from ..conv1d import conv1d, reference
from .arguments import DTYPES, fits, pointer

MIN_CHANNELS = 17
"""Output channels below which half of the tiles would be empty."""


def supports(x, weight, bias, residual, dilation) -> bool:
    others = [t for t in (bias, residual) if t is not None]
    return fits(x, weight, *others) and weight.shape[2] % 2 == 1


@conv1d.backend("native", devices=("cpu",), supports=supports)
def native_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, dilation: int
) -> torch.Tensor:
    """x [N, C, T], weight [O, C, k] → [N, O, T]."""
    if _native.isa() != "amx" or weight.shape[0] < MIN_CHANNELS or x.numel() == 0:
        return reference(x, weight, bias, residual, dilation)
    return run(x, weight, bias, residual, dilation)


def run(x, weight, bias, residual, dilation: int) -> torch.Tensor:
    """The kernel of the instruction set in use, whatever is faster."""
    x, weight = x.contiguous(), weight.contiguous()
    bias, residual = (None if t is None else t.contiguous() for t in (bias, residual))
    (batch, channels, length), (out_channels, _, taps) = x.shape, weight.shape
    out = x.new_empty(batch, out_channels, length)
    addresses = (x.data_ptr(), weight.data_ptr(), pointer(bias), pointer(residual), out.data_ptr())
    _native.conv1d(DTYPES[x.dtype], *addresses, batch, channels, out_channels, length, taps, dilation)
    return out
