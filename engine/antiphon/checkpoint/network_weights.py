"""How the linear maps of the networks beside the language model lie in memory: as they are stored, or as a CPU reads them best.

Their rows are many. With tiles it pays to read bfloat16 matrices in 12 bits a weight, widened beside the products; with vectors
nothing is to spare for that, but matrices in panels need not be arranged at every call.
"""

from __future__ import annotations

from enum import Enum

import torch

from antiphon_kernels import native
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.linear_panels import to_panels
from antiphon_kernels.weights_memory import WeightsMemory

from .compact import obstacle


class Arrangement(Enum):
    """Of a linear map: a matrix ``X.weight`` [out, in] with a bias ``X.bias``."""

    PLAIN = "plain"
    COMPACT = "compact"
    """``linear_compact``'s bytes, with their codes as ``X.weight.scale``."""
    PANELS = "panels"
    """``linear_panels``'s panels."""


def choose_arrangement(compact: bool | None, dtype: torch.dtype, device: torch.device) -> Arrangement:
    """What a network in ``dtype`` is fastest with; ``compact``: False leaves matrices as they are."""
    if compact is False or device.type != "cpu":
        return Arrangement.PLAIN
    if native.prefers_compact(dtype, many_rows=True) and obstacle(device) is None:
        return Arrangement.COMPACT
    return Arrangement.PANELS if native.prefers_panels() else Arrangement.PLAIN


def arrange(weights: dict[str, torch.Tensor], arrangement: Arrangement) -> dict[str, torch.Tensor]:
    """The weights of a network, emptied on the way, with its linear maps so arranged; those that cannot be stay plain."""
    if arrangement is Arrangement.PLAIN:
        return weights
    memory, out = WeightsMemory(), {}
    made = _compact if arrangement is Arrangement.COMPACT else _panels
    maps = {name for name, w in weights.items() if w.ndim == 2 and name.removesuffix("weight") + "bias" in weights}
    for name in list(weights):
        tensor = weights.pop(name)
        out |= (made(name, tensor, memory) if name in maps else None) or {name: tensor}
    return out


def _compact(name: str, weight: torch.Tensor, memory: WeightsMemory) -> dict[str, torch.Tensor]:
    pair = compact(weight, memory)
    return {} if pair is None else {name: pair[0], f"{name}.scale": pair[1]}


def _panels(name: str, weight: torch.Tensor, memory: WeightsMemory) -> dict[str, torch.Tensor]:
    panels = to_panels(weight, memory)
    return {} if panels is None else {name: panels}
