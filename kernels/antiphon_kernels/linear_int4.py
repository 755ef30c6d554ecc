"""Linear map with int4 weights in groups of 128 input columns that share a scale, in branch form.

    y = x @ w[branch].T + bias[branch],   w[o, i] = (nibble[o, i] - 8) * scale[i // 128, o]

Shapes: x [T, in], in a multiple of 128; weight uint8 [B, out, in / 2]: 64 bytes hold a group, the low half of byte j is
column j of it, the high half column 64 + j; scale bfloat16 [B, in / 128, out]; bias [B, out] or None; result [T, out] in
x's dtype. Sums in float32 or exacter. :func:`quantize` rounds to nearest on -8..7 with the scale of least squared error
among a few.
"""

from __future__ import annotations

import torch

from . import cuda_support
from .branches import check_split
from .linear import Tile, branch_tile, num_row_tiles
from .linear import reference as dense
from .operator import Operator
from .silu_mul import silu_mul_rounded
from .triton_support import cdiv, check, jit, launch, row_contiguous, supported_dtype, tl

GROUP = 128
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Scales tried, as shares of the one that represents the largest weight of a group."""


def quantize(weight: torch.Tensor, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., out, in] → packed uint8 [..., out, in / 2] and bfloat16 scales [..., in / 128, out].

    ``importance`` [..., in]: what a squared error of each column's weights counts, such as the mean square of its inputs.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    counts = None if importance is None else importance.float().unflatten(-1, (-1, GROUP)).unsqueeze(-3)
    largest = groups.abs().amax(-1)
    best = error = scale = None
    for shrink in SHRINKS:
        candidate = (largest * (shrink / 7)).to(torch.bfloat16)
        inverse = torch.where(candidate > 0, 1 / candidate.float(), torch.zeros_like(largest))
        values = (groups * inverse[..., None]).round().clamp(-8, 7)
        loss = (values * candidate.float()[..., None] - groups).square()
        loss = (loss if counts is None else loss * counts).sum(-1)
        if error is None:
            best, error, scale = values, loss, candidate
        else:
            better = loss < error
            best = torch.where(better[..., None], values, best)
            error, scale = torch.where(better, loss, error), torch.where(better, candidate, scale)
    return pack(best), scale.transpose(-1, -2).contiguous()


def pack(values: torch.Tensor) -> torch.Tensor:
    """values [..., out, groups, 128] in -8..7 → uint8 [..., out, groups * 64]."""
    nibbles = (values + 8).to(torch.uint8)
    return (nibbles[..., :64] | nibbles[..., 64:] << 4).flatten(-2)


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights [..., out, in] that the packed ones stand for."""
    groups = weight.unflatten(-1, (-1, GROUP // 2))
    values = torch.cat((groups & 15, groups >> 4), dim=-1).to(dtype) - 8
    return (values * scale.transpose(-1, -2).to(dtype)[..., None]).flatten(-2)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """A dense product with the weights in float32 (float64 for float64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = None if bias is None else bias.to(wide)
    return dense(x.to(wide), dequantize(weight, scale, wide), bias, split).to(x.dtype)


@jit
def group_product(low_x, high_x, packed):
    """Rows times one group's integers: the low halves of the bytes, then the high halves."""
    low = ((packed & 15).to(tl.int8) - 8).to(low_x.dtype)
    high = ((packed >> 4).to(tl.int8) - 8).to(low_x.dtype)
    part = tl.dot(low_x, tl.trans(low), input_precision="ieee")
    return tl.dot(high_x, tl.trans(high), part, input_precision="ieee")


@jit(varying=("num_rows", "split"))
def linear_int4_kernel(
    x,
    weight,
    scale,
    bias,
    out,
    x_stride,
    num_rows,
    split,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    GATED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program: M rows of one branch by N results. A step is one group: two exact products, scaled once, summed in order.

    GATED: the matrix holds gate and up, the result is SwiGLU of both.
    """
    branch, first, end = branch_tile(tl.program_id(0), split, num_rows, M)
    rows = first + tl.arange(0, M)
    held = (rows < end)[:, None]
    cols = tl.program_id(1) * N + tl.arange(0, N)
    column = tl.minimum(cols, outputs - 1)
    matrices: tl.constexpr = 2 if GATED else 1
    kept = branch * matrices * outputs + column.to(tl.int64)
    half: tl.constexpr = GROUP // 2
    steps = tl.arange(0, half)
    x_tile = x + rows.to(tl.int64)[:, None] * x_stride + steps[None, :]
    w_tile = weight + kept[:, None] * (inputs // 2) + steps[None, :]
    s_tile = scale + branch * (inputs // GROUP) * matrices * outputs + column
    acc = tl.zeros((M, N), tl.float32)
    gated = tl.zeros((M, N), tl.float32)
    for group in range(inputs // GROUP):
        low_x = tl.load(x_tile + group * GROUP, held, 0.0)
        high_x = tl.load(x_tile + group * GROUP + half, held, 0.0)
        packed = tl.load(w_tile + group * half)
        part = group_product(low_x, high_x, packed)
        acc += part * tl.load(s_tile + group * matrices * outputs).to(tl.float32)[None, :]
        if GATED:
            packed = tl.load(w_tile + outputs * (inputs // 2) + group * half)
            part = group_product(low_x, high_x, packed)
            gated += part * tl.load(s_tile + group * matrices * outputs + outputs).to(tl.float32)[None, :]
    if bias is not None:
        acc += tl.load(bias + kept).to(tl.float32)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    if GATED:
        result = silu_mul_rounded(acc.to(dtype).to(tl.float32), gated.to(dtype).to(tl.float32), dtype)
    else:
        result = acc.to(dtype)
    target = out + rows.to(tl.int64)[:, None] * outputs + cols[None, :]
    tl.store(target, result, held & (cols < outputs)[None, :])


def int4_tile(rows: int, matrices: int, dtype: torch.dtype) -> Tile:
    """A step is one group, whatever the tile."""
    if dtype == torch.float32:
        return Tile(16 if rows <= 16 else 32, 32, GROUP, 4, 1)
    if rows <= 16:
        return Tile(16, 32, GROUP, 4, 4)
    if rows <= 64:
        return Tile(64, 32 // matrices, GROUP, 4, 3)
    return Tile(128, 64 // matrices, GROUP, 8, 2)


def launch_linear_int4(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int, gated: bool
) -> torch.Tensor:
    """Check, choose the tile, launch; ``gated`` as in :func:`linear_int4_kernel`."""
    check_split(weight, x.shape[0], split)
    check(x.shape[1] % GROUP == 0, f"inputs: a multiple of {GROUP}")
    check(weight.is_contiguous() and scale.is_contiguous() and weight.dtype == torch.uint8, "weight, scale: contiguous")
    x = row_contiguous(x)
    num_rows, inputs = x.shape
    matrices = 2 if gated else 1
    outputs = weight.shape[1] // matrices
    tile = int4_tile(max(split, num_rows - split), matrices, x.dtype)
    out = torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    launch(
        linear_int4_kernel, (num_row_tiles(num_rows, split, tile.M), cdiv(outputs, tile.N)), x, weight, scale, bias, out,
        x.stride(0), num_rows, split, num_warps=tile.num_warps, num_stages=tile.num_stages, inputs=inputs,
        outputs=outputs, GATED=gated, M=tile.M, N=tile.N, GROUP=GROUP,
    )  # fmt: skip
    return out


def linear_int4_triton(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """One launch for both branches; rows of x may be strided."""
    return launch_linear_int4(x, weight, scale, bias, split, gated=False)


def linear_int4_cuda(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """csrc/cuda/linear_int4.cu, up to 8 rows per branch: a warp per output.

    Not registered: it sums in another order than the Triton kernel, so a row would depend on how many rows there are.
    """
    return cuda_support.launch_skinny("linear_int4", x, weight, scale, bias, split)


def linear_int4_supported(x, weight, *_) -> bool:
    """Rows of a float type, contiguous weights."""
    return supported_dtype(x) and weight.is_contiguous()


def fake(x, weight, scale, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear_int4 = Operator(
    "linear_int4",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
linear_int4.backend("triton", devices=("cuda",), supports=linear_int4_supported)(linear_int4_triton)
