"""Native float32 linear by integer tiles (csrc/cpu/kernels/linear_fixed.cpp): where a CPU has AMX 1.1 to 1.6 times as fast as
oneDNN's vectors for up to 2304 inputs, 0.8 to 1.05 at 9216 (docs/log.md, 2026-11-22), elsewhere a slow specification of itself."""

from __future__ import annotations

import torch

from .. import _native
from ..linear_fixed import MAX_INPUTS, FixedWeight, linear_fixed
from .arguments import are, pointer


def prefers(weight: torch.Tensor) -> bool:
    """True for float32 matrices where the instruction set in use has integer tiles and operators run natively."""
    return (
        weight.dtype == torch.float32
        and weight.shape[1] <= MAX_INPUTS
        and _native.isa() == "amx"
        and linear_fixed.backends("cpu")[0] == "native"
    )


def pack_native(weight: torch.Tensor) -> FixedWeight:
    """As ``linear_fixed.pack_reference``, bit by bit."""
    weight, (outputs, inputs) = weight.contiguous(), weight.shape
    packed = FixedWeight(
        torch.empty(_native.linear_fixed_weight_bytes(outputs, inputs), dtype=torch.int8), weight.new_empty(outputs)
    )
    _native.linear_fixed_weight(weight.data_ptr(), packed.tiles.data_ptr(), packed.scales.data_ptr(), outputs, inputs)
    return packed


def supports(x, tiles, scales, bias) -> bool:
    return are(torch.float32, scales) and x.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32)


@linear_fixed.backend("native", devices=("cpu",), supports=supports)
def native_linear_fixed(
    x: torch.Tensor, tiles: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x [T, in] → [T, out]."""
    x = x if x.stride(1) == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    (rows, inputs), outputs = x.shape, scales.shape[0]
    out = x.new_empty(rows, outputs)
    if rows:
        _native.linear_fixed(
            x.data_ptr(),
            x.stride(0),
            tiles.data_ptr(),
            scales.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            rows,
            outputs,
            inputs,
        )
    return out
