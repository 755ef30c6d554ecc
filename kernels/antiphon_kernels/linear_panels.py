"""Linear map whose weights lie in the order in which a CPU's vectors read them: for many rows, again and again.

    y = x @ w.T + bias

Shapes: x [T, in]; panels [P, R, O] in x's dtype, made once by :func:`to_panels` of w [out, in]; bias [out]; result [T, out]:
bit for bit that of the native ``linear`` with the plain weights for many rows.

A panel has O outputs, as many as the instruction set in use takes at once, the last one filled up with zeros; R is in, and in
float32 two more for each 192 of it. What stands where is the native operators' own (csrc/cpu/kernels/linear_wide_vector.h):
panels belong to the process that made them and to its instruction set, and are not stored. Two bytes a weight in
bfloat16, four in float32, as plain ones have: they take the place of those, and ``linear`` has nothing left to arrange.
"""

from __future__ import annotations

import torch

from .linear import reference as dense
from .operator import Operator
from .weights_memory import WeightsMemory

CHUNK = 192
"""Inputs of a float32 panel that two words of each output say something about."""


def to_panels(weight: torch.Tensor, memory: WeightsMemory | None = None) -> torch.Tensor | None:
    """weight [out, in] as panels, in ``memory``; None where it stays plain: no native operators, another dtype or device, an odd
    number of inputs."""
    if "native" not in linear_panels.backends("cpu") or weight.device.type != "cpu":
        return None
    from .native.linear_panels import pack_native

    return pack_native(weight, memory or WeightsMemory())


def from_panels(panels: torch.Tensor, outputs: int) -> torch.Tensor:
    """The weights [outputs, in] of which panels were made, bit for bit (float32 below 2^-126 of a row's mean may become zero)."""
    from .native.linear_panels import unpack_native

    return unpack_native(panels, outputs)


def num_inputs(panels: torch.Tensor) -> int:
    """Width of the rows that panels take."""
    rows = panels.shape[1]
    return rows - 2 * -(-rows // (CHUNK + 2)) if panels.dtype == torch.float32 else rows


def reference(x: torch.Tensor, panels: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A dense product with the plain weights."""
    return dense(x, from_panels(panels, len(bias))[None], bias[None], len(x))


def fake(x, panels, bias):
    return x.new_empty(x.shape[0], bias.shape[0])


linear_panels = Operator(
    "linear_panels", "(Tensor x, Tensor panels, Tensor bias) -> Tensor", reference=reference, fake=fake
)
