"""A linear map with its weights, plain or quantised: which operator runs follows from what is stored, not from the caller.

Stored forms and the operator of each:

    plain   weight float [B, out, in], no scale                                     linear
    compact weight uint8 [B, out, in * 3 / 2], scale int32 [N], the codes           linear_compact
    int8    weight int8 [B, out, in], scale float32 [B, out]                        linear_int8
    int4    weight uint8 [B, out, in / 2], scale bfloat16 [B, in / 128, out]        linear_int4
    fp8     weight float8_e4m3fn [B, out, in], scale float32 [B, out]               linear_fp8
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear import linear
from .linear_compact import linear_compact, num_inputs, widen
from .linear_fp8 import linear_fp8, quantize_fp8
from .linear_fp8_silu_mul import linear_fp8_silu_mul
from .linear_int4 import dequantize as dequantize_int4
from .linear_int4 import linear_int4
from .linear_int4 import quantize as quantize_int4
from .linear_int4_silu_mul import linear_int4_silu_mul
from .linear_int8 import dequantize as dequantize_int8
from .linear_int8 import linear_int8
from .linear_int8 import quantize as quantize_int8
from .linear_int8_silu_mul import linear_int8_silu_mul
from .linear_silu_mul import linear_silu_mul
from .silu_mul import silu_mul

SCHEMES = {torch.int8: "int8", torch.uint8: "int4", torch.float8_e4m3fn: "fp8"}
"""What the dtype of a scaled weight says, unless it has codes for a scale."""
_OPERATORS = {"compact": linear_compact, "int8": linear_int8, "int4": linear_int4, "fp8": linear_fp8}
_GATED = {"int8": linear_int8_silu_mul, "int4": linear_int4_silu_mul, "fp8": linear_fp8_silu_mul}
_QUANTIZERS = {"int8": quantize_int8, "fp8": quantize_fp8}


def quantize_weight(weight: Tensor, scheme: str, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """weight float [..., out, in] → integers (or float8) and scale in the formats above.

    ``importance`` [..., in]: what an error in each column counts; only int4, which chooses among scales, heeds it.
    """
    if scheme == "int4":
        return quantize_int4(weight, importance)
    return _QUANTIZERS[scheme](weight)


def dequantize_weight(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [..., out, in] that a quantised or compact pair stands for."""
    scheme = scheme_of(weight, scale)
    if scheme == "compact":
        return widen(weight, scale).to(dtype)
    return (dequantize_int4 if scheme == "int4" else dequantize_int8)(weight, scale, dtype)


def scheme_of(weight: Tensor, scale: Tensor | None) -> str:
    """``plain``, ``compact``, ``int8``, ``int4`` or ``fp8``."""
    if scale is None:
        return "plain"
    return "compact" if (weight.dtype, scale.dtype) == (torch.uint8, torch.int32) else SCHEMES[weight.dtype]


@dataclass(frozen=True)
class LinearWeight:
    """One linear map in branch form; call it with rows x [T, in] and the number of rows of branch 0."""

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and self.weight.dtype not in SCHEMES:
            raise TypeError(f"a scaled weight must be one of {', '.join(map(str, SCHEMES))}, got {self.weight.dtype}")

    @classmethod
    def named(cls, weights: Mapping[str, Tensor], name: str, bias: str | None = None) -> LinearWeight:
        """The map ``name`` of packed weights, with its ``name.scale`` if it has one; [out, in] is taken as one branch."""
        weight, scale = weights[name], weights.get(f"{name}.scale")
        if weight.ndim == 2:
            has_branches = scale is not None and scheme_of(weight, scale) != "compact"
            weight, scale = weight[None], scale[None] if has_branches else scale
        return cls(weight, scale, None if bias is None else weights[bias])

    @property
    def num_inputs(self) -> int:
        """Width of the rows that it takes."""
        if self.scheme == "compact":
            return num_inputs(self.weight)
        return self.weight.shape[-1] * (2 if self.scheme == "int4" else 1)

    @property
    def num_outputs(self) -> int:
        """Width of the rows that it gives."""
        return self.weight.shape[-2]

    @property
    def scheme(self) -> str:
        """``plain``, ``compact``, ``int8``, ``int4`` or ``fp8``."""
        return scheme_of(self.weight, self.scale)

    def __call__(self, x: Tensor, split: int) -> Tensor:
        """x [T, in] → [T, out]."""
        if self.scale is None:
            return linear(x, self.weight, self.bias, split)
        return _OPERATORS[self.scheme](x, self.weight, self.scale, self.bias, split)

    def gated(self, x: Tensor, split: int) -> Tensor:
        """SwiGLU of a packed gate|up map, x [T, in] → [T, out / 2]; one operator unless there is a bias or it is compact."""
        if self.bias is not None or self.scheme == "compact":
            return silu_mul(self(x, split))
        if self.scale is None:
            return linear_silu_mul(x, self.weight, split)
        return _GATED[self.scheme](x, self.weight, self.scale, split)
