"""Native linear with int8 and int4 weights: few rows natively, many rows with PyTorch on weights widened on the way."""

from __future__ import annotations

import torch

from .. import _native
from ..branches import check_split
from ..linear import reference as dense
from ..linear_int4 import dequantize as dequantize_int4
from ..linear_int4 import linear_int4
from ..linear_int8 import dequantize as dequantize_int8
from ..linear_int8 import linear_int8
from .arguments import DTYPES, are, fits, pointer
from .linear import MAX_ROWS


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
    return _run(_native.linear_int8, dequantize_int8, x, weight, scale, bias, split)


@linear_int4.backend("native", devices=("cpu",), supports=_supports_int4)
def native_linear_int4(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """x [T, in], weight uint8 [B, out, in / 2], scale [B, in / 128, out], bias [B, out] → [T, out]."""
    return _run(_native.linear_int4, dequantize_int4, x, weight, scale, bias, split)


def _run(kernel, dequantize, x, weight, scale, bias, split) -> torch.Tensor:
    rows, columns = x.shape
    check_split(weight, rows, split)
    if max(split, rows - split) > MAX_ROWS:
        return dense(x, dequantize(weight, scale, x.dtype), bias, split)
    if x.stride(1) != 1:
        x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty(rows, weight.shape[1])
    if rows:
        addresses = (weight.data_ptr(), scale.data_ptr(), pointer(bias), out.data_ptr())
        kernel(DTYPES[x.dtype], x.data_ptr(), x.stride(0), *addresses, rows, split, out.shape[1], columns)
    return out
