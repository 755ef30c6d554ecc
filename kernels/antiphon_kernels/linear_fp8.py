"""Linear map in branch form with float8 (e4m3) weights and rows, for tensor cores that multiply float8.

    s[r] = max |x[r]| / 448;  y[r] = (round8(x[r] / s[r]) @ weight[branch].T) * s[r] * scale[branch] + bias[branch]

Shapes: x [T, in]; weight float8_e4m3fn [B, out, in]; scale float32 [B, out]; bias [B, out] or None; result [T, out] in x's
dtype. A row is scaled by its own largest value, so its result does not depend on the batch. The sum is float32.
"""

from __future__ import annotations

import torch

from .branches import check_split, per_branch
from .layer_norm_modulate import accumulation_dtype
from .linear import Tile, branch_tile, num_row_tiles
from .operator import Operator
from .silu_mul import silu_mul_rounded
from .triton_support import capability, cdiv, check, jit, launch, next_power_of_2, row_contiguous, supported_dtype, tl

LARGEST = 448.0
"""Largest finite float8_e4m3fn."""


def quantize_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows x [..., in] → float8_e4m3fn of that shape and float32 scale [...]; also for weights, row = output."""
    wide = x.float()
    scale = (wide.abs().amax(-1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (wide / scale[..., None]).to(torch.float8_e4m3fn), scale


def reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """Quantize the rows, then one widened matrix product per branch that has rows."""
    check_split(weight, x.shape[0], split)
    wide = accumulation_dtype(x.dtype)

    def product(rows: torch.Tensor, b: int) -> torch.Tensor:
        narrow, row_scale = quantize_fp8(rows)
        y = narrow.to(wide) @ weight[b].to(wide).T * row_scale.to(wide)[:, None] * scale[b].to(wide)
        return (y if bias is None else y + bias[b].to(wide)).to(x.dtype)

    return per_branch(product, x, split)


@jit
def quantise_rows_kernel(x, narrow, scales, x_stride, inputs: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < inputs
    value = tl.load(x + row * x_stride + cols, inside, 0.0).to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(value)), LARGEST), 1.1754943508222875e-38)
    tl.store(scales + row, scale)
    tl.store(narrow + row * inputs + cols, tl.div_rn(value, scale).to(narrow.dtype.element_ty), inside)


@jit(varying=("num_rows", "split"))
def linear_fp8_kernel(
    x,
    x_scales,
    weight,
    scale,
    bias,
    out,
    num_rows,
    split,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    GATED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """One program: M rows of one branch by N results; partial sums leave the tensor core every K inputs.

    GATED: the matrix holds gate and up, the result is SwiGLU of both.
    """
    branch, first, end = branch_tile(tl.program_id(0), split, num_rows, M)
    rows = first + tl.arange(0, M)
    held = rows < end
    cols = tl.program_id(1) * N + tl.arange(0, N)
    matrices: tl.constexpr = 2 if GATED else 1
    kept = branch * matrices * outputs + tl.minimum(cols, outputs - 1).to(tl.int64)
    steps = tl.arange(0, K)
    x_tile = x + rows.to(tl.int64)[:, None] * inputs + steps[None, :]
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
            b = tl.load(w_tile + k, inside, 0.0)
        acc = tl.dot(a, tl.trans(b), acc, max_num_imprecise_acc=K)
        if GATED:
            up = w_tile + outputs * inputs + k
            c = tl.load(up) if inputs % K == 0 else tl.load(up, inside, 0.0)
            gated = tl.dot(a, tl.trans(c), gated, max_num_imprecise_acc=K)
    x_scale = tl.load(x_scales + rows, held, 0.0)[:, None]
    acc = acc * x_scale * tl.load(scale + kept)[None, :]
    if bias is not None:
        acc += tl.load(bias + kept).to(tl.float32)[None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    if GATED:
        gated = gated * x_scale * tl.load(scale + outputs + kept)[None, :]
        result = silu_mul_rounded(acc.to(dtype).to(tl.float32), gated.to(dtype).to(tl.float32), dtype)
    else:
        result = acc.to(dtype)
    target = out + rows.to(tl.int64)[:, None] * outputs + cols[None, :]
    tl.store(target, result, held[:, None] & (cols < outputs)[None, :])


def fp8_tile(rows: int, outputs: int, matrices: int) -> Tile:
    """As ``linear_tile``, with twice the inputs per step."""
    if rows <= 16:
        return Tile(16, 16 if outputs < 8192 else 32 // matrices, 256, 4, 4)
    if rows <= 64:
        return Tile(64, 32 // matrices, 128, 4, 4)
    return Tile(128, 128 // matrices, 128, 8, 3)


def launch_linear_fp8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int, gated: bool
) -> torch.Tensor:
    """Check, quantise the rows, choose the tile, launch; ``gated`` as in :func:`linear_fp8_kernel`."""
    check_split(weight, x.shape[0], split)
    check(weight.is_contiguous() and scale.is_contiguous(), "weight, scale: contiguous")
    x = row_contiguous(x)
    num_rows, inputs = x.shape
    matrices = 2 if gated else 1
    outputs = weight.shape[1] // matrices
    narrow = torch.empty(num_rows, inputs, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    out = torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    block = next_power_of_2(inputs)
    launch(
        quantise_rows_kernel, (num_rows,), x, narrow, scales, x.stride(0), num_warps=min(max(block // 1024, 1), 16),
        inputs=inputs, BLOCK=block, LARGEST=LARGEST,
    )  # fmt: skip
    tile = fp8_tile(max(split, num_rows - split), outputs, matrices)
    launch(
        linear_fp8_kernel, (num_row_tiles(num_rows, split, tile.M), cdiv(outputs, tile.N)), narrow, scales, weight, scale,
        bias, out, num_rows, split, num_warps=tile.num_warps, num_stages=tile.num_stages, inputs=inputs, outputs=outputs,
        GATED=gated, M=tile.M, N=tile.N, K=tile.K,
    )  # fmt: skip
    return out


def linear_fp8_triton(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """Two launches: T programs that quantise rows, then the product for both branches."""
    return launch_linear_fp8(x, weight, scale, bias, split, gated=False)


def linear_fp8_supported(x, weight, *_) -> bool:
    """sm_89 and later convert and multiply float8."""
    return supported_dtype(x) and weight.is_contiguous() and capability(x) >= 89


def fake(x, weight, scale, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear_fp8 = Operator(
    "linear_fp8",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
linear_fp8.backend("triton", devices=("cuda",), supports=linear_fp8_supported)(linear_fp8_triton)
