"""float32 linear map by integer products: y = x W^T + bias, rows of x and W in 24-bit fixed point.

Every row has a scale of its own that brings its largest value to 2^23, and a value is rounded to
(high * 2^16 + middle * 2^8 + low) / scale, digits being signed bytes:

    y[t, n] = (hh + ((hm + mh) + (hl + mm + lh) / 2^8) / 2^8) (2^7 / x_scale[t]) (2^25 / w_scale[n]) + bias[n]

where hm is the sum over k of high digits of x times middle digits of w, and so on. The three sums are exact; each is rounded
to float32, and so is every operation on them, in a fixed order: a row's result does not depend on how many rows there are, and
every implementation gives the same bits. Against the exact product x and W are rounded to 2^-24 of their row's largest value
and the products left out are of that size; float32's own rounding is 2^-24 of every term and sum. Rows whose values are all below 2^-100 count as zero, and a row of x or W
with a value that is not finite gives NaN.

Shapes: x [T, in], in at most 32768; bias [out] or None; result [T, out]. W is packed once by :func:`pack_fixed`: digits in the
order in which a CPU's integer tiles take them, [out / 32][in / 64][3][2][16][16][4] (blocks of outputs and inputs, digit, half,
group of four inputs, output, input), zero past the end, and scales [out]. Three bytes a weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .operator import Operator

MAX_INPUTS = 32768
DIGITS, OUTPUTS, DEPTH = 3, 32, 64
LARGEST = (127 << 16) + (127 << 8) + 126
SMALLEST = 2.0**-100
UNIT_OF_X, UNIT_OF_W = 2.0**7, 2.0**25
"""2^32 in all, split so that neither factor nor what is between leaves float32's range."""


class FixedWeight(NamedTuple):
    """A packed matrix: ``tiles`` int8, as the module says, and ``scales`` float32 [out]."""

    tiles: torch.Tensor
    scales: torch.Tensor


def row_scales(x: torch.Tensor) -> torch.Tensor:
    """Scales of the rows of float32 ``x`` [T, in]: 0 where all is below 2^-100, NaN where not all is finite."""
    largest = x.abs().amax(1)
    scales = torch.where(largest < SMALLEST, 0.0, torch.full_like(largest, LARGEST) / largest)
    return torch.where(x.isfinite().all(1), scales, torch.nan)


def digits(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """High, middle and low digits of ``x`` [T, in] times its rows' scales, int8 [3, T, in]; 0 where the scale is 0 or NaN."""
    rest, found = torch.where(scales[:, None] > 0, x * scales[:, None], 0.0).round().to(torch.int32), []
    for _ in range(DIGITS):
        low = ((rest + 128) & 255) - 128
        found.insert(0, low.to(torch.int8))
        rest = (rest - low) >> 8
    return torch.stack(found)


def row_units(scales: torch.Tensor, unit: float) -> torch.Tensor:
    """unit / scale, 0 of 0."""
    return torch.where(scales == 0, 0.0, torch.full_like(scales, unit) / scales)


def pack_reference(weight: torch.Tensor) -> FixedWeight:
    """``weight`` float32 [out, in] as digits and scales, with PyTorch."""
    scales, (outputs, inputs) = row_scales(weight), weight.shape
    padded = F.pad(digits(weight, scales), (0, -inputs % DEPTH, 0, -outputs % OUTPUTS))
    blocks = padded.view(DIGITS, -1, 2, OUTPUTS // 2, padded.shape[2] // DEPTH, DEPTH // 4, 4)
    return FixedWeight(blocks.permute(1, 4, 0, 2, 5, 3, 6).contiguous().flatten(), scales)


def unpack_digits(tiles: torch.Tensor, outputs: int, inputs: int) -> torch.Tensor:
    """The digits of a packed matrix, int8 [3, out, in]."""
    depths = -(-inputs // DEPTH)
    blocks = tiles.view(-1, depths, DIGITS, 2, DEPTH // 4, OUTPUTS // 2, 4).permute(2, 0, 3, 5, 1, 4, 6)
    return blocks.reshape(DIGITS, -1, depths * DEPTH)[:, :outputs, :inputs]


def reference(x: torch.Tensor, tiles: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The products of digits in float64, which holds their sums exactly."""
    x_scales = row_scales(x)
    of_x, of_w = digits(x, x_scales).double(), unpack_digits(tiles, len(scales), x.shape[1]).double()
    high, middle, low = (sum(of_x[i] @ of_w[rank - i].T for i in range(rank + 1)).float() for rank in range(DIGITS))
    total = high + (middle + low * 2.0**-8) * 2.0**-8
    y = total * row_units(x_scales, UNIT_OF_X)[:, None] * row_units(scales, UNIT_OF_W)
    return y if bias is None else y + bias


def fake(x, tiles, scales, bias):
    return x.new_empty(x.shape[0], scales.shape[0])


linear_fixed = Operator(
    "linear_fixed", "(Tensor x, Tensor tiles, Tensor scales, Tensor? bias) -> Tensor", reference=reference, fake=fake
)


def pack_fixed(weight: torch.Tensor) -> FixedWeight:
    """``weight`` float32 [out, in] packed for :data:`linear_fixed`, natively where that is built and chosen.

    Raises:
        ValueError: another dtype or shape.
    """
    if weight.dtype != torch.float32 or weight.dim() != 2 or weight.shape[1] > MAX_INPUTS:
        raise ValueError(
            f"weight: expected float32 [out, in] with in at most {MAX_INPUTS}, got {weight.dtype} {list(weight.shape)}"
        )
    if "native" in linear_fixed.backends("cpu") and weight.device.type == "cpu":
        from .native.linear_fixed import pack_native

        return pack_native(weight)
    return pack_reference(weight)
