"""Native linear with int8 and int4 weights, read as they are stored: a row has the same result among few rows (decode) and
among many (prompts). Beyond :func:`max_rows` of a branch weights are widened for ``native.linear`` on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from .. import _native
from ..branches import check_split
from ..linear_int4 import dequantize as dequantize_int4
from ..linear_int4 import linear_int4
from ..linear_int8 import dequantize as dequantize_int8
from ..linear_int8 import linear_int8
from .arguments import DTYPES, are, fits, pointer
from .linear import MAX_ROWS
from .linear import native_linear as dense


class Kernels(NamedTuple):
    """Of one scheme: for up to :data:`MAX_ROWS` rows of a branch, for any number, and the weights widened."""

    few: Callable[..., None]
    many: Callable[..., None]
    widen: Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]


INT8 = Kernels(_native.linear_int8, _native.linear_int8_wide, dequantize_int8)
INT4 = Kernels(_native.linear_int4, _native.linear_int4_wide, dequantize_int4)


def _supports_int8(x, weight, scale, bias, split) -> bool:
    floats = fits(x) and (bias is None or fits(x, bias))
    return floats and are(torch.int8, weight) and are(torch.float32, scale) and weight.shape[2] % 64 == 0


def _supports_int4(x, weight, scale, bias, split) -> bool:
    floats = fits(x) and (bias is None or fits(x, bias))
    return floats and are(torch.uint8, weight) and are(torch.bfloat16, scale)


@linear_int8.backend("native", devices=("cpu",), supports=_supports_int8)
def native_linear_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """x [T, in], weight int8 [B, out, in], scale [B, out], bias [B, out] → [T, out]."""
    return _run(INT8, x, weight, scale, bias, split)


@linear_int4.backend("native", devices=("cpu",), supports=_supports_int4)
def native_linear_int4(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """x [T, in], weight uint8 [B, out, in / 2], scale [B, in / 128, out], bias [B, out] → [T, out]."""
    return _run(INT4, x, weight, scale, bias, split)


def max_rows() -> float:
    """Rows of a branch up to which a native kernel serves them: all, but without vectors."""
    return MAX_ROWS if _native.isa() == "scalar" else math.inf


def _run(kernels, x, weight, scale, bias, split) -> torch.Tensor:
    rows = max(split, x.shape[0] - split)
    if rows > max_rows():
        return dense(x, kernels.widen(weight, scale, x.dtype), bias, split)
    return native_linear(kernels, x, weight, scale, bias, split, rows > MAX_ROWS)


def native_linear(
    kernels: Kernels,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    split: int,
    wide: bool,
) -> torch.Tensor:
    """By the kernel for many rows if ``wide``, else by the one for at most :data:`MAX_ROWS` of a branch."""
    rows, columns = x.shape
    check_split(weight, rows, split)
    x = x if x.stride(1) == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty(rows, weight.shape[1])
    if not rows:
        return out
    operands = (DTYPES[x.dtype], x.data_ptr(), x.stride(0), weight.data_ptr(), scale.data_ptr(), pointer(bias))
    sizes = (rows, split, out.shape[1], columns)
    if wide:
        workspace = torch.empty(_native.linear_planes_bytes(rows, split, columns), dtype=torch.int8)
        kernels.many(*operands, out.data_ptr(), workspace.data_ptr(), *sizes)
    else:
        kernels.few(*operands, out.data_ptr(), *sizes)
    return out
