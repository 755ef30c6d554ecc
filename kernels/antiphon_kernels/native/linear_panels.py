"""Native linear with weights in panels (csrc/cpu/kernels/linear_wide_vector.h): where few hundred rows meet a matrix, 1.0 to 1.3
times as fast as ``linear``, which arranges a panel at every call (docs/log.md, 2026-11-29)."""

from __future__ import annotations

import torch

from .. import _native
from ..linear_panels import linear_panels, num_inputs
from ..weights_memory import WeightsMemory
from .arguments import DTYPES, are
from .network_pass import chosen, reads_panels


def prefers() -> bool:
    """True where networks of many rows are faster with weights in panels and run natively: with vectors, for tiles have their own
    ways."""
    return chosen() and _native.isa() != "amx"


def pack_native(weight: torch.Tensor, memory: WeightsMemory) -> torch.Tensor | None:
    """As ``linear_panels.to_panels``."""
    outputs, inputs = weight.shape
    if weight.dtype not in DTYPES or inputs % 2 or not weight.numel():
        return None
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    width, columns = _native.panel_outputs(), _native.packed_columns(DTYPES[weight.dtype], inputs)
    panels = memory.empty((-(-outputs // width), columns, width), weight.dtype)
    _native.weight_to_panels(
        DTYPES[weight.dtype], weight.data_ptr(), weight.stride(0), panels.data_ptr(), outputs, inputs
    )
    return panels


def unpack_native(panels: torch.Tensor, outputs: int) -> torch.Tensor:
    """As ``linear_panels.from_panels``."""
    inputs = num_inputs(panels)
    weight = panels.new_empty(outputs, inputs)
    _native.weight_from_panels(DTYPES[panels.dtype], weight.data_ptr(), inputs, panels.data_ptr(), outputs, inputs)
    return weight


def supports(x, panels, bias) -> bool:
    return x.dtype in DTYPES and panels.dtype == x.dtype and are(x.dtype, bias) and reads_panels(panels)


@linear_panels.backend("native", devices=("cpu",), supports=supports)
def native_linear_panels(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x [T, in] → [T, out]."""
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, inputs), outputs = x.shape, len(bias)
    out = x.new_empty(rows, outputs)
    if rows:
        workspace = x.new_empty(_native.linear_wide_workspace(rows, rows, inputs))
        _native.linear_panels(
            DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            panels.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
            workspace.data_ptr(),
            rows,
            outputs,
            inputs,
        )
    return out
