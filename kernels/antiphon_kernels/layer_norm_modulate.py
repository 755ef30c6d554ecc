"""Layer norm without weights, then the adaLN shift and scale of the row's token.

    y[r] = (x[r] - mean) / sqrt(var + eps) * (1 + scale[r // fpt]) + shift[r // fpt],   fpt = frames_per_token

Source: reference behaviour, section 11 (eps 1e-6). Shapes: x [T, H] contiguous; shift, scale [T / fpt, H], rows may be strided
(they are columns of one packed modulation matrix), last dimension contiguous; result [T, H] in x's dtype. Mean and biased
variance in float32 (float64 for float64), one rounding at the store.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .operator import Operator
from .triton_support import check, jit, launch, next_power_of_2, row_contiguous, supported_dtype, tl


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; every other type is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, frames_per_token: int, eps: float
) -> torch.Tensor:
    """Frames grouped under their token, so that shift and scale broadcast."""
    num_rows, hidden = x.shape
    wide = accumulation_dtype(x.dtype)
    normed = F.layer_norm(x.to(wide), (hidden,), eps=eps).view(-1, frames_per_token, hidden)
    modulated = torch.addcmul(shift.to(wide)[:, None], normed, 1 + scale.to(wide)[:, None])
    return modulated.view(num_rows, hidden).to(x.dtype)


@jit(varying=("frames_per_token",))
def layer_norm_modulate_kernel(
    x, shift, scale, out, x_stride, shift_stride, scale_stride, frames_per_token, eps, hidden: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: one row; variance from the centred values."""
    row = tl.program_id(0).to(tl.int64)
    token = row // frames_per_token
    cols = tl.arange(0, BLOCK)
    inside = cols < hidden
    value = tl.load(x + row * x_stride + cols, inside, 0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value) / hidden, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / hidden + eps)
    gain = 1.0 + tl.load(scale + token * scale_stride + cols, inside, 0.0).to(tl.float32)
    moved = normed * gain + tl.load(shift + token * shift_stride + cols, inside, 0.0).to(tl.float32)
    tl.store(out + row * hidden + cols, moved.to(out.dtype.element_ty), inside)


def layer_norm_modulate_triton(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, frames_per_token: int, eps: float
) -> torch.Tensor:
    """Launch over T programs; rows of every input may be strided."""
    check(x.shape[0] == shift.shape[0] * frames_per_token, "shift, scale: one row per token")
    x, shift, scale = row_contiguous(x), row_contiguous(shift), row_contiguous(scale)
    num_rows, hidden = x.shape
    out = torch.empty(num_rows, hidden, dtype=x.dtype, device=x.device)
    block = next_power_of_2(hidden)
    launch(
        layer_norm_modulate_kernel, (num_rows,), x, shift, scale, out, x.stride(0), shift.stride(0), scale.stride(0),
        frames_per_token, eps, num_warps=min(max(block // 512, 1), 16), hidden=hidden, BLOCK=block,
    )  # fmt: skip
    return out


def fake(x, shift, scale, frames_per_token, eps):
    return torch.empty_like(x)


layer_norm_modulate = Operator(
    "layer_norm_modulate",
    "(Tensor x, Tensor shift, Tensor scale, int frames_per_token, float eps) -> Tensor",
    reference=reference,
    fake=fake,
)
layer_norm_modulate.backend("triton", devices=("cuda",), supports=lambda x, shift, scale, *_: supported_dtype(x, shift, scale))(
    layer_norm_modulate_triton
)
