"""Gated residual: the branch's result, scaled by the gate of the row's token, added to the stream.

    out[r] = x[r] + gate[r // fpt] * y[r],   fpt = frames_per_token

Source: reference behaviour, section 11. Shapes: x, y [T, H]; gate [T / fpt, H], rows may be strided, last dimension
contiguous; result [T, H] in x's dtype. Product and sum in float32 (float64 for float64), one rounding at the store.
"""

from __future__ import annotations

import torch

from .layer_norm_modulate import accumulation_dtype
from .operator import Operator
from .triton_support import cdiv, check, jit, launch, row_contiguous, supported_dtype, tl


def reference(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, frames_per_token: int) -> torch.Tensor:
    """Frames grouped under their token, so that the gate broadcasts."""
    wide = accumulation_dtype(x.dtype)
    grouped = (gate.shape[0], frames_per_token, x.shape[1])
    out = torch.addcmul(x.to(wide).view(grouped), gate.to(wide)[:, None], y.to(wide).view(grouped))
    return out.view(x.shape).to(x.dtype)


@jit(varying=("frames_per_token",))
def gate_residual_kernel(
    x, y, gate, out, x_stride, y_stride, gate_stride, frames_per_token, hidden: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < hidden
    g = tl.load(gate + (row // frames_per_token) * gate_stride + cols, inside, 0.0).to(tl.float32)
    a = tl.load(x + row * x_stride + cols, inside, 0.0).to(tl.float32)
    b = tl.load(y + row * y_stride + cols, inside, 0.0).to(tl.float32)
    tl.store(out + row * hidden + cols, (a + g * b).to(out.dtype.element_ty), inside)


def gate_residual_triton(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, frames_per_token: int) -> torch.Tensor:
    """Launch over [T, H / 1024] programs; rows of every input may be strided."""
    check(x.shape == y.shape and x.shape[0] == gate.shape[0] * frames_per_token, "gate: one row per token")
    x, y, gate = row_contiguous(x), row_contiguous(y), row_contiguous(gate)
    num_rows, hidden = x.shape
    out = torch.empty(num_rows, hidden, dtype=x.dtype, device=x.device)
    launch(
        gate_residual_kernel, (num_rows, cdiv(hidden, 1024)), x, y, gate, out, x.stride(0), y.stride(0), gate.stride(0),
        frames_per_token, hidden=hidden, BLOCK=1024,
    )  # fmt: skip
    return out


def fake(x, y, gate, frames_per_token):
    return torch.empty_like(x)


gate_residual = Operator(
    "gate_residual",
    "(Tensor x, Tensor y, Tensor gate, int frames_per_token) -> Tensor",
    reference=reference,
    fake=fake,
)
gate_residual.backend("triton", devices=("cuda",), supports=lambda x, y, gate, _: supported_dtype(x, y, gate))(
    gate_residual_triton
)
