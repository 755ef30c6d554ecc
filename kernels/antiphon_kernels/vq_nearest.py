"""vq_nearest: index of the nearest codebook row.

    y[t] = argmin_k  |x[t]|^2 + |c[k]|^2 - 2 x[t] . c[k]        lowest k on ties

x        [T, D] float32   rows to quantise
codebook [K, D] float32
y        [T]    int64

Distances are float32, summed in the order written above. Source: reference behaviour section 5.7.
"""

from __future__ import annotations

import torch

from .operator import Operator

ROWS_PER_BLOCK = 512
"""Rows whose distances to the whole codebook are in memory at once."""


def reference(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Nearest codebook row of every row of ``x``, int64 [T]."""
    norms = codebook.square().sum(dim=1)
    nearest = [
        (rows.square().sum(dim=1, keepdim=True) + norms - 2 * (rows @ codebook.T)).argmin(dim=1)
        for rows in x.split(ROWS_PER_BLOCK)
    ]
    return torch.cat(nearest) if nearest else x.new_empty(0, dtype=torch.int64)


def _fake(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], dtype=torch.int64)


vq_nearest = Operator("vq_nearest", "(Tensor x, Tensor codebook) -> Tensor", reference=reference, fake=_fake)
