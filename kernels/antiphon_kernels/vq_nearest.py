"""vq_nearest: index of the nearest codebook row.

    y[t] = argmin_k  |x[t]|^2 + |c[k]|^2 - 2 x[t] . c[k]        lowest k on ties

x        [T, D] float32   rows to quantise
codebook [K, D] float32
norms    [K]    float32   |c[k]|^2, as squared_norms makes them once: they need as much memory as the codebook for a moment
y        [T]    int64

Distances are float32, summed in the order written above. Source: reference behaviour section 5.7.
"""

from __future__ import annotations

import torch

from .operator import Operator
from .triton_support import available, cdiv, check, jit, launch, next_power_of_2, tl

ROWS_PER_BLOCK = 512
"""Rows whose distances to the whole codebook are in memory at once."""


def squared_norms(codebook: torch.Tensor) -> torch.Tensor:
    """The ``norms`` of a codebook."""
    return codebook.square().sum(dim=1)


def reference(x: torch.Tensor, codebook: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Nearest codebook row of every row of ``x``, int64 [T]."""
    nearest = [
        (rows.square().sum(dim=1, keepdim=True) + norms - 2 * (rows @ codebook.T)).argmin(dim=1)
        for rows in x.split(ROWS_PER_BLOCK)
    ]
    return torch.cat(nearest) if nearest else x.new_empty(0, dtype=torch.int64)


SPLIT = 1024
"""Codebook rows of one program."""


@jit(varying=("num_rows", "num_codes"))
def nearest_in_part_kernel(
    x, codebook, norms, values, indices, num_rows, num_codes, width: tl.constexpr, SPLIT: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One program: M rows against SPLIT codes → the smallest distance and its lowest index."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    part = tl.program_id(1)
    held = (rows < num_rows)[:, None]
    x_tile = x + rows.to(tl.int64)[:, None] * width
    best = tl.full((M,), float("inf"), tl.float32)
    index = tl.zeros((M,), tl.int32)
    for first in range(part * SPLIT, tl.minimum((part + 1) * SPLIT, num_codes), N):
        codes = first + tl.arange(0, N)
        present = codes < num_codes
        product = tl.zeros((M, N), tl.float32)
        square = tl.zeros((M,), tl.float32)
        for k in range(0, width, K):
            steps = k + tl.arange(0, K)
            inside = (steps < width)[None, :]
            a = tl.load(x_tile + steps[None, :], held & inside, 0.0)
            c = tl.load(codebook + codes.to(tl.int64)[:, None] * width + steps[None, :], present[:, None] & inside, 0.0)
            product = tl.dot(a, tl.trans(c), product, input_precision="ieee")
            square += tl.sum(a * a, 1)
        norm = tl.load(norms + codes, present, 0.0)
        distance = (square[:, None] + norm[None, :]) - 2.0 * product
        distance = tl.where(present[None, :], distance, float("inf"))
        nearest = tl.min(distance, 1)
        code = tl.min(tl.where(distance == nearest[:, None], codes[None, :], 0x7FFFFFFF), 1)
        index = tl.where(nearest < best, code, index)
        best = tl.minimum(nearest, best)
    target = part * num_rows + rows
    tl.store(values + target, best, rows < num_rows)
    tl.store(indices + target, index, rows < num_rows)


@jit(varying=("num_rows", "num_parts"))
def nearest_kernel(values, indices, out, num_rows, num_parts, PARTS: tl.constexpr, M: tl.constexpr):
    """One program: M rows; the lowest index among the parts with the smallest distance."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    parts = tl.arange(0, PARTS)
    inside = (rows < num_rows)[:, None] & (parts < num_parts)[None, :]
    at = parts[None, :] * num_rows + rows[:, None]
    distance = tl.load(values + at, inside, float("inf"))
    best = tl.min(distance, 1)
    index = tl.min(tl.where(distance == best[:, None], tl.load(indices + at, inside, 0x7FFFFFFF), 0x7FFFFFFF), 1)
    tl.store(out + rows, index.to(tl.int64), rows < num_rows)


def vq_nearest_triton(x: torch.Tensor, codebook: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Two launches: [T / 32, K / SPLIT] programs, then T / 32. The distance matrix never reaches memory."""
    check(x.dtype == codebook.dtype == norms.dtype == torch.float32, "x, codebook, norms: float32")
    x, codebook, norms = x.contiguous(), codebook.contiguous(), norms.contiguous()
    num_rows, width = x.shape
    num_codes = codebook.shape[0]
    parts = cdiv(num_codes, SPLIT)
    values = torch.empty(parts * num_rows, dtype=torch.float32, device=x.device)
    indices = torch.empty(parts * num_rows, dtype=torch.int32, device=x.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=x.device)
    launch(
        nearest_in_part_kernel, (cdiv(num_rows, 32), parts), x, codebook, norms, values, indices, num_rows,
        num_codes, width=width, SPLIT=SPLIT, M=32, N=32, K=32,
    )  # fmt: skip
    launch(
        nearest_kernel, (cdiv(num_rows, 32),), values, indices, out, num_rows, parts, num_warps=1,
        PARTS=next_power_of_2(parts), M=32,
    )  # fmt: skip
    return out


def _fake(x: torch.Tensor, codebook: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


vq_nearest = Operator("vq_nearest", "(Tensor x, Tensor codebook, Tensor norms) -> Tensor", reference=reference, fake=_fake)
vq_nearest.backend("triton", devices=("cuda",), supports=lambda x, codebook, norms: available and x.dtype == torch.float32)(
    vq_nearest_triton
)
