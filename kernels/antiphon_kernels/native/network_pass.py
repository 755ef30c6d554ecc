"""What bound passes over a whole network share: its linear maps, and when to run it that way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import _native
from ..linear import linear
from ..linear_compact import num_inputs
from ..linear_fixed import MAX_INPUTS, FixedWeight
from ..linear_panels import num_inputs as inputs_of_panels
from .arguments import DTYPES, are, has_rows, pointer
from .linear import TILE_DEPTH
from .linear_fixed import prefers as prefers_fixed

IN_PANELS = 0
"""The row stride that says so (kInPanels in csrc/cpu/linear_kernels.h)."""


class Dense(Protocol):
    """A linear map: weight [out, in] or its panels, bias [out]; ``codes``: of a compact weight, or None; ``fixed``: the float32
    weight packed by ``pack_fixed``."""

    weight: Tensor
    bias: Tensor
    codes: Tensor | None
    fixed: FixedWeight


def chosen() -> bool:
    """True if operators run natively unless told otherwise, with vectors or tiles."""
    return linear.backends("cpu")[0] == "native" and _native.isa() != "scalar"


def fit_tiles(maps: Sequence[Dense], first_of_any_depth: bool = False) -> bool:
    """True if all maps are on the CPU, of one native dtype, rows contiguous, and of sizes that tiles take."""
    dtype = maps[0].bias.dtype
    if dtype not in DTYPES or not all(are(dtype, m.bias) and m.weight.device.type == "cpu" for m in maps):
        return False
    if not all(_fits(m, dtype) for m in maps):
        return False
    depths = [_num_inputs(m) for m in maps[first_of_any_depth:]]
    return max(depths) <= MAX_INPUTS if dtype == torch.float32 else all(k % TILE_DEPTH == 0 for k in depths)


def in_panels(weight: Tensor) -> bool:
    """Whether the weight of a linear map without branches is ``linear_panels``'."""
    return weight.ndim == 3


def reads_panels(panels: Tensor) -> bool:
    """Whether they are panels of the size that the instruction set in use makes, and it reads them: tiles do not."""
    sizes_fit = in_panels(panels) and panels.shape[2] == _native.panel_outputs()
    return sizes_fit and panels.is_contiguous() and _native.isa() != "amx"


def _num_inputs(dense: Dense) -> int:
    if in_panels(dense.weight):
        return inputs_of_panels(dense.weight)
    return dense.weight.shape[1] if dense.codes is None else num_inputs(dense.weight)


def _fits(dense: Dense, dtype: torch.dtype) -> bool:
    """Whether the weight, plain, in panels or compact, is one of maps in ``dtype``."""
    if in_panels(dense.weight):
        return dense.weight.dtype == dtype and reads_panels(dense.weight)
    if dense.codes is None:
        return dense.weight.dtype == dtype and has_rows(dense.weight)
    return dtype == torch.bfloat16 and are(torch.uint8, dense.weight) and are(torch.int32, dense.codes)


def addresses(dense: Dense) -> list[int]:
    """Weight, its row stride (0: panels), scales, codes, bias, outputs, inputs, as the C++ side takes them."""
    fixed = not in_panels(dense.weight) and prefers_fixed(dense.weight)
    weight, scales = (t.data_ptr() for t in dense.fixed) if fixed else (dense.weight.data_ptr(), 0)
    stride = IN_PANELS if in_panels(dense.weight) else dense.weight.stride(0)
    return [weight, stride, scales, pointer(dense.codes), dense.bias.data_ptr(), len(dense.bias), _num_inputs(dense)]
