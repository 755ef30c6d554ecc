"""Linear map with int8 weights, one scale per output channel, in branch form.

    y = (x @ weight[branch].T) * scale[branch] + bias[branch]

Shapes: x [T, in]; weight int8 [B, out, in]; scale float32 [B, out]; bias [B, out] or None; result [T, out] in x's dtype.
Sums in float32 or exacter. :func:`quantize` rounds to nearest, symmetric: |w| = 127 is the largest of its row.
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


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., out, in] → int8 of the same shape and float32 scales [..., out]; a row of zeros has scale 0."""
    wide = weight.float()
    scale = wide.abs().amax(-1) / 127
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    return (wide * inverse[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights that the quantised ones stand for."""
    return (weight.float() * scale[..., None]).to(dtype)


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """A dense product with the weights in float32 (float64 for float64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = None if bias is None else bias.to(wide)
    return dense(x.to(wide), weight.to(wide) * scale.to(wide)[..., None], bias, split).to(x.dtype)


@jit(varying=("num_rows", "split"))
def linear_int8_kernel(
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
    K: tl.constexpr,
):
    """One program: M rows of one branch by N results. The integers enter the product exactly; scale and bias join the sum.

    GATED: the matrix holds gate and up, the result is SwiGLU of both.
    """
    branch, first, end = branch_tile(tl.program_id(0), split, num_rows, M)
    rows = first + tl.arange(0, M)
    held = rows < end
    cols = tl.program_id(1) * N + tl.arange(0, N)
    matrices: tl.constexpr = 2 if GATED else 1
    kept = branch * matrices * outputs + tl.minimum(cols, outputs - 1).to(tl.int64)
    steps = tl.arange(0, K)
    x_tile = x + rows.to(tl.int64)[:, None] * x_stride + steps[None, :]
    w_tile = weight + kept[:, None] * inputs + steps[None, :]
    acc = tl.zeros((M, N), tl.float32)
    gated = tl.zeros((M, N), tl.float32)
    for k in range(0, inputs, K):
        if inputs % K == 0:
            a = tl.load(x_tile + k, held[:, None], 0.0)
            b = tl.load(w_tile + k)
        else:
            inside = (k + steps < inputs)[None, :]
            a = tl.load(x_tile + k, held[:, None] & inside, 0.0)
            b = tl.load(w_tile + k, inside, 0)
        acc = tl.dot(a, tl.trans(b.to(a.dtype)), acc, input_precision="ieee")
        if GATED:
            up = w_tile + outputs * inputs + k
            c = tl.load(up) if inputs % K == 0 else tl.load(up, inside, 0)
            gated = tl.dot(a, tl.trans(c.to(a.dtype)), gated, input_precision="ieee")
    acc *= tl.load(scale + kept)[None, :]
    if bias is not None:
        acc += tl.load(bias + kept).to(tl.float32)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    if GATED:
        gated *= tl.load(scale + outputs + kept)[None, :]
        result = silu_mul_rounded(acc.to(dtype).to(tl.float32), gated.to(dtype).to(tl.float32), dtype)
    else:
        result = acc.to(dtype)
    target = out + rows.to(tl.int64)[:, None] * outputs + cols[None, :]
    tl.store(target, result, held[:, None] & (cols < outputs)[None, :])


def int8_tile(rows: int, outputs: int, matrices: int, dtype: torch.dtype) -> Tile:
    """As ``linear_tile``."""
    if dtype == torch.float32:
        return Tile(16 if rows <= 16 else 32, 32, 32, 4, 2)
    if rows <= 16:
        return Tile(16, 16 if outputs < 8192 else 32, 256 // matrices, 4, 4)
    if rows <= 64:
        return Tile(64, 32, 128 // matrices, 4, 3)
    return Tile(128, 128 // matrices, 64, 8, 3)


def launch_linear_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int, gated: bool
) -> torch.Tensor:
    """Check, choose the tile, launch; ``gated`` as in :func:`linear_int8_kernel`."""
    check_split(weight, x.shape[0], split)
    check(weight.is_contiguous() and scale.is_contiguous() and weight.dtype == torch.int8, "weight, scale: contiguous")
    x = row_contiguous(x)
    num_rows, inputs = x.shape
    matrices = 2 if gated else 1
    outputs = weight.shape[1] // matrices
    tile = int8_tile(max(split, num_rows - split), outputs, matrices, x.dtype)
    out = torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    launch(
        linear_int8_kernel, (num_row_tiles(num_rows, split, tile.M), cdiv(outputs, tile.N)), x, weight, scale, bias, out,
        x.stride(0), num_rows, split, num_warps=tile.num_warps, num_stages=tile.num_stages, inputs=inputs,
        outputs=outputs, GATED=gated, M=tile.M, N=tile.N, K=tile.K,
    )  # fmt: skip
    return out


def linear_int8_triton(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """One launch for both branches; rows of x may be strided."""
    return launch_linear_int8(x, weight, scale, bias, split, gated=False)


def linear_int8_cuda(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """csrc/cuda/linear_int8.cu, up to 8 rows per branch: a warp per output.

    Not registered: it sums in another order than the Triton kernel, so a row would depend on how many rows there are.
    """
    return cuda_support.launch_skinny("linear_int8", x, weight, scale, bias, split)


def linear_int8_supported(x, weight, *_) -> bool:
    """Rows of a float type, contiguous weights."""
    return supported_dtype(x) and weight.is_contiguous()


def fake(x, weight, scale, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear_int8 = Operator(
    "linear_int8",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
linear_int8.backend("triton", devices=("cuda",), supports=linear_int8_supported)(linear_int8_triton)
