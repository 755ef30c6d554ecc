"""bfloat16 matrices whose escapes, once they are compact, are known."""

from __future__ import annotations

from collections.abc import Iterable

import torch

COMMON = (*range(0x38, 0x40), *range(0xB8, 0xC0))
"""Upper bytes of nearly all weights of :func:`matrix`: 2^-15 to 2, both signs."""
RARE = (0x00, 0x80, 0x01, 0x2F, 0x37, 0x40, 0xB7, 0xC1)
"""Upper bytes of its escapes: zero and denormals, numbers below and above the others."""


def matrix(
    rows: int, inputs: int, escapes: Iterable[tuple[int, int]] = (), common: tuple[int, ...] = COMMON
) -> torch.Tensor:
    """[rows, inputs] with escapes at these places: rows and columns; the upper bytes of all others are ``common``."""
    generator = torch.Generator().manual_seed(rows * inputs)

    def drawn(upper: tuple[int, ...], *shape: int) -> torch.Tensor:
        lower = torch.randint(0, 256, shape, generator=generator)
        return torch.tensor(upper)[torch.arange(lower.numel()).view(shape) % len(upper)] << 8 | lower

    weight, places = drawn(common, rows, inputs), list(escapes)
    weight = weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view(rows, inputs)
    if places:
        row, column = torch.tensor(places).unbind(1)
        weight[row, column] = drawn(RARE, len(places))
    return weight.to(torch.int16).view(torch.bfloat16)


def bits(weight: torch.Tensor) -> torch.Tensor:
    """What is compared where NaN must stay NaN, and which one."""
    return weight.view(torch.int16 if weight.dtype == torch.bfloat16 else torch.int32)
