"""BigVGAN's anti-aliased SnakeBeta: up by 2, activate, down by 2; the 2x signal need never reach memory.

    up[u]  = 2 sum_i xr[i] f_up[u + 5 - 2i]           x repeated beyond its ends: xr[i] = x[clamp(i, 0, T-1)]
    act[u] = up[u] + inv_beta sin^2(alpha up[u])      alpha, inv_beta per channel
    out[t] = sum_k f_down[k] act[clamp(2t + k - 5, 0, 2T-1)]

so out[t] sees x[t-5 .. t+5]. The *activated* signal is repeated at the ends, not the input (the fused public CUDA kernel
differs there). Source: reference behaviour, section 13. Shapes: x [N, C, T], T >= 1; alpha [C] (already exponentiated),
inv_beta [C] = 1 / (exp(beta) + 1e-9); up_filter, down_filter [12]; result [N, C, T] in x's dtype. Everything between load
and store in float32 (float64 for float64); alpha * up can be large, so sin needs a true range reduction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import cuda_support
from .layer_norm_modulate import accumulation_dtype
from .operator import Operator
from .triton_support import cdiv, check, jit, launch, supported_dtype, tl

TAPS = 12
CONTEXT = 5
"""An output sample depends on the input samples within this distance."""


def upsample(x: torch.Tensor, up_filter: torch.Tensor) -> torch.Tensor:
    """x [N, C, T] → [N, C, 2T]: edges repeated, zeros inserted, low-pass filtered."""
    channels = x.shape[1]
    padded = F.pad(x, (5, 5), mode="replicate")
    filters = up_filter.view(1, 1, TAPS).expand(channels, 1, TAPS)
    return 2 * F.conv_transpose1d(padded, filters, stride=2, groups=channels)[..., 15:-15]


def downsample(x: torch.Tensor, down_filter: torch.Tensor) -> torch.Tensor:
    """x [N, C, 2T] → [N, C, T]: edges repeated, low-pass filtered, every other sample."""
    channels = x.shape[1]
    padded = F.pad(x, (5, 6), mode="replicate")
    return F.conv1d(padded, down_filter.view(1, 1, TAPS).expand(channels, 1, TAPS), stride=2, groups=channels)


def snake(x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor) -> torch.Tensor:
    """x [N, C, T] + inv_beta sin^2(alpha x)."""
    return torch.addcmul(x, inv_beta[:, None], torch.sin(x * alpha[:, None]).square())


def reference(
    x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor
) -> torch.Tensor:
    """The three stages one after the other."""
    wide = accumulation_dtype(x.dtype)
    activated = snake(upsample(x.to(wide), up_filter.to(wide)), alpha.to(wide), inv_beta.to(wide))
    return downsample(activated, down_filter.to(wide)).to(x.dtype)


@jit
def sin_squared(y):
    """sin(y)^2 of float32 values up to about 1e5: pi is subtracted in three parts, then an odd polynomial of degree 11."""
    turns = tl.floor(y * 0.3183098861837907 + 0.5)
    r = tl.fma(turns, -3.140625, y)
    r = tl.fma(turns, -9.67502593994140625e-4, r)
    r = tl.fma(turns, -1.509957990978376432e-7, r)
    z = r * r
    p = tl.fma(z, -2.388977765178133e-08, 2.7525304382088135e-06)
    p = tl.fma(z, p, -0.00019840861926653488)
    p = tl.fma(z, p, 0.00833333098080661)
    p = tl.fma(z, p, -0.166666666170199)
    s = tl.fma(r * z, p, r)
    return s * s


@jit(varying=("length", "channels"))
def alias_free_snake_kernel(
    x, alpha, inv_beta, up_filter, down_filter, out, length, channels, BLOCK: tl.constexpr, HALO: tl.constexpr
):
    """One program: BLOCK - 2 HALO samples of one channel from BLOCK frames of the activated signal, which stay on chip.

    Frame j holds act[2j] and act[2j + 1]; beyond the ends both are the first or the last activated sample.
    """
    line = tl.program_id(0).to(tl.int64)
    channel = (line % channels).to(tl.int32)
    start = tl.program_id(1) * (BLOCK - 2 * HALO)
    frame = start - HALO + tl.arange(0, BLOCK)
    centre = tl.minimum(tl.maximum(frame, 0), length - 1)
    row = x + line * length
    even = tl.zeros((BLOCK,), tl.float32)
    odd = tl.zeros((BLOCK,), tl.float32)
    for d in tl.static_range(-3, 4):
        at = tl.minimum(tl.maximum(centre + d, 0), length - 1)
        value = tl.load(row + at).to(tl.float32)
        if d < 3:
            even += value * tl.load(up_filter + 5 - 2 * d).to(tl.float32)
        if d > -3:
            odd += value * tl.load(up_filter + 6 - 2 * d).to(tl.float32)
    a, b = tl.load(alpha + channel).to(tl.float32), tl.load(inv_beta + channel).to(tl.float32)
    even, odd = 2.0 * even, 2.0 * odd
    even += b * sin_squared(a * even)
    odd += b * sin_squared(a * odd)
    last = frame >= length
    before = frame < 0
    outer_even = tl.where(last, odd, even)
    odd = tl.where(before, even, odd)
    even = outer_even
    lanes = tl.arange(0, BLOCK)
    result = tl.zeros((BLOCK,), tl.float32)
    for m in tl.static_range(0, 7):
        place = tl.minimum(lanes + m, BLOCK - 1)
        if m < 6:
            result += tl.gather(odd, place, 0) * tl.load(down_filter + 2 * m).to(tl.float32)
        if m > 0:
            result += tl.gather(even, place, 0) * tl.load(down_filter + 2 * m - 1).to(tl.float32)
    sample = start + lanes
    inside = (lanes < BLOCK - 2 * HALO) & (sample < length)
    tl.store(out + line * length + sample, result.to(out.dtype.element_ty), inside)


def alias_free_snake_triton(
    x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor
) -> torch.Tensor:
    """Launch over [N * C, T / 506] programs."""
    check(up_filter.shape == down_filter.shape == (TAPS,), "filters: 12 taps")
    x = x.contiguous()
    batch, channels, length = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block, halo = 512, 3
    launch(
        alias_free_snake_kernel, (batch * channels, cdiv(length, block - 2 * halo)), x, alpha, inv_beta, up_filter,
        down_filter, out, length, channels, BLOCK=block, HALO=halo,
    )  # fmt: skip
    return out


CUDA_TILE, CUDA_THREADS = 1024, 128
"""kTile and kThreads of csrc/cuda/alias_free_snake.cu."""


def alias_free_snake_cuda(
    x: torch.Tensor, alpha: torch.Tensor, inv_beta: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor
) -> torch.Tensor:
    """csrc/cuda/alias_free_snake.cu: one block per line and tile."""
    parameters = (alpha, inv_beta, up_filter, down_filter)
    check(all(p.dtype == torch.float32 and p.is_contiguous() for p in parameters), "parameters: contiguous float32")
    x = x.contiguous()
    batch, channels, length = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks = batch * channels * cdiv(length, CUDA_TILE)
    entry = f"alias_free_snake_{str(x.dtype).removeprefix('torch.')}"
    cuda_support.launch("alias_free_snake", entry, blocks, CUDA_THREADS, x, *parameters, out, channels, length)
    return out


def cuda_supported(x, *parameters) -> bool:
    """A dtype of the kernel, float32 parameters."""
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return cuda_support.available and known and all(p.dtype == torch.float32 for p in parameters)


def fake(x, alpha, inv_beta, up_filter, down_filter):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


alias_free_snake = Operator(
    "alias_free_snake",
    "(Tensor x, Tensor alpha, Tensor inv_beta, Tensor up_filter, Tensor down_filter) -> Tensor",
    reference=reference,
    fake=fake,
)
alias_free_snake.backend("triton", devices=("cuda",), supports=supported_dtype)(alias_free_snake_triton)
alias_free_snake.backend("cuda", devices=("cuda",), supports=cuda_supported)(alias_free_snake_cuda)
