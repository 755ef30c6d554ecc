"""Linear map in branch form.

    y = x @ weight[branch].T + bias[branch]

Shapes: x [T, in]; weight [B, out, in]; bias [B, out] or None; result [T, out] in x's dtype, accumulated in float32.

The Triton kernel walks the inputs of every result in the same order, first to last, whatever the tile, and never splits
that sum among programs: a row's result does not depend on how many rows there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .branches import check_split, per_branch
from .operator import Operator
from .silu_mul import silu_mul_rounded
from .triton_support import cdiv, check, has_wgmma, jit, launch, row_contiguous, supported_dtype, tl


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """One matrix product per branch that has rows."""
    check_split(weight, x.shape[0], split)
    return per_branch(lambda rows, b: F.linear(rows, weight[b], None if bias is None else bias[b]), x, split)


@jit
def branch_tile(tile, split, num_rows, M: tl.constexpr):
    """Branch, first row and end of the rows of a tile: the tiles of branch 0 come first, none holds rows of both."""
    text_tiles = tl.cdiv(split, M)
    audio = tile >= text_tiles
    first = tl.where(audio, split + (tile - text_tiles) * M, tile * M)
    return audio.to(tl.int64), first, tl.where(audio, num_rows, split)


@jit(varying=("num_rows", "split"))
def linear_kernel(
    x,
    weight,
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
    K: tl.constexpr,
):
    """One program: M rows of one branch by N results. GATED: the matrix holds gate and up, the result is SwiGLU of both."""
    branch, first, end = branch_tile(tl.program_id(0), split, num_rows, M)
    rows = first + tl.arange(0, M)
    held = rows < end
    cols = tl.program_id(1) * N + tl.arange(0, N)
    kept = tl.minimum(cols, outputs - 1).to(tl.int64)
    steps = tl.arange(0, K)
    matrices: tl.constexpr = 2 if GATED else 1
    x_tile = x + rows.to(tl.int64)[:, None] * x_stride + steps[None, :]
    w_tile = weight + (branch * matrices * outputs + kept)[:, None] * inputs + steps[None, :]
    acc = tl.zeros((M, N), tl.float32)
    gated = tl.zeros((M, N), tl.float32)
    for k in range(0, inputs, K):
        if inputs % K == 0:
            a = tl.load(x_tile + k, held[:, None], 0.0)
            b = tl.load(w_tile + k)
        else:
            inside = (k + steps < inputs)[None, :]
            a = tl.load(x_tile + k, held[:, None] & inside, 0.0)
            b = tl.load(w_tile + k, inside, 0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
        if GATED:
            up = w_tile + outputs * inputs + k
            c = tl.load(up) if inputs % K == 0 else tl.load(up, inside, 0.0)
            gated = tl.dot(a, tl.trans(c), gated, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + branch * outputs + kept).to(tl.float32)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    if GATED:
        result = silu_mul_rounded(acc.to(dtype).to(tl.float32), gated.to(dtype).to(tl.float32), dtype)
    else:
        result = acc.to(dtype)
    tl.store(
        out + rows.to(tl.int64)[:, None] * outputs + cols[None, :], result, held[:, None] & (cols < outputs)[None, :]
    )


class Tile(NamedTuple):
    """Rows, results and inputs of a program's step, its warps, and how many steps are in flight."""

    M: int
    N: int
    K: int
    num_warps: int
    num_stages: int


def linear_tile(rows: int, outputs: int, matrices: int, dtype: torch.dtype, wgmma: bool) -> Tile:
    """Tile for ``rows`` rows of the longer branch.

    Few rows: the weights stream once, small tiles keep every multiprocessor loading. Many rows: large tiles reuse both operands.
    """
    if dtype == torch.float32:
        return Tile(16 if rows <= 16 else 32, 32, 32, 4, 2)
    if rows <= 16:
        return Tile(16, 16 if outputs < 8192 else 32, 256 // matrices, 4, 4)
    if rows <= 64:
        return Tile(64, 32, 128 // matrices, 4, 3) if wgmma else Tile(64, 32, 64, 4, 4)  # longer steps spill there
    return Tile(128, 128 // matrices, 64, 8, 4 if wgmma else 3)


def num_row_tiles(num_rows: int, split: int, m: int) -> int:
    """Tiles of m rows that cover both branches."""
    return cdiv(split, m) + cdiv(num_rows - split, m)


def launch_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int, gated: bool
) -> torch.Tensor:
    """Check, choose the tile, launch; ``gated`` as in :func:`linear_kernel`."""
    check_split(weight, x.shape[0], split)
    check(weight.is_contiguous() and weight.dtype == x.dtype, "weight: contiguous, x's dtype")
    check(bias is None or bias.is_contiguous(), "bias: contiguous")
    x = row_contiguous(x)
    num_rows, inputs = x.shape
    matrices = 2 if gated else 1
    outputs = weight.shape[1] // matrices
    tile = linear_tile(max(split, num_rows - split), outputs, matrices, x.dtype, has_wgmma(x))
    out = torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    grid = (num_row_tiles(num_rows, split, tile.M), cdiv(outputs, tile.N))
    launch(
        linear_kernel, grid, x, weight, bias, out, x.stride(0), num_rows, split,
        num_warps=tile.num_warps, num_stages=tile.num_stages, inputs=inputs, outputs=outputs, GATED=gated,
        M=tile.M, N=tile.N, K=tile.K,
    )  # fmt: skip
    return out


def linear_triton(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, split: int) -> torch.Tensor:
    """One launch for both branches; rows of x may be strided."""
    return launch_linear(x, weight, bias, split, gated=False)


def linear_supported(x, weight, *_) -> bool:
    """One dtype, contiguous weights."""
    return supported_dtype(x) and weight.dtype == x.dtype and weight.is_contiguous()


def fake(x, weight, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear = Operator(
    "linear", "(Tensor x, Tensor weight, Tensor? bias, int split) -> Tensor", reference=reference, fake=fake
)
linear.backend("triton", devices=("cuda",), supports=linear_supported)(linear_triton)
