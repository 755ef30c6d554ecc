"""Cases of the operators that only CPUs implement: on a GPU cuDNN and PyTorch run these parts, so nothing is compiled for them.

Beside :mod:`operator_cases` in the benchmark and in the check of the operators. dtypes are those in which the CPU's networks call
the operator, whatever the maker's; operations are those of the plain product, also where integer tiles take six for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from antiphon_kernels import pack_fixed
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.linear_panels import to_panels

from .operator_cases import FULL, Call, Case, Maker, Sizes, num_bytes

TAPS = ((3, 1), (7, 3), (11, 5))
"""Taps and dilation, one pair for each of the sizes' stages; each of the vocoder's dilations once."""

SPLIT = 1e-5
"""Rounding of a float32 convolution whose operands are split into two bfloat16 parts each, of the largest result."""


def cpu_cases(sizes: Sizes = FULL) -> list[Case]:
    """All cases: the language model, encoders and flow network, then the vocoder."""
    maps = [*_linear_compact(sizes), *_gelu(sizes), *_linear_fixed(sizes), *_linear_panels(sizes)]
    return [*maps, *_conv1d(sizes)]


def _linear_compact(s: Sizes) -> Iterator[Case]:
    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    shapes = {"qkv": (qkv, s.hidden), "down": (s.hidden, s.intermediate)}
    for rows, dtype in product((s.rows[0], *s.rows[-2:]), (torch.bfloat16, torch.float32)):
        for name, shape in shapes.items():
            label = f"{name},{str(dtype).removeprefix('torch.')},T={rows}"
            yield Case("linear_compact", label, lambda m, n=rows, d=dtype, w=shape: _compact(m, d, n, *w))


def _compact(m: Maker, dtype: torch.dtype, rows: int, outputs: int, inputs: int) -> Call:
    x, bias = m.values(rows, inputs, dtype=dtype), m.values(1, outputs, dtype=dtype)
    pair = compact(m.values(1, outputs, inputs, dtype=torch.bfloat16, scale=inputs**-0.5))
    moved = num_bytes(x, *pair, bias) + dtype.itemsize * rows * outputs
    return Call((x, *pair, bias, rows), moved, 2 * rows * outputs * inputs)


def _gelu(s: Sizes) -> Iterator[Case]:
    whisper = (s.encoder_rows, 4 * 64 * s.encoder_heads)
    yield Case("gelu", "whisper", lambda m: _activation(m.values(*whisper, dtype=torch.float32), False))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield Case(
            "gelu", f"flow,{name}", lambda m, d=dtype: _activation(m.values(s.chunk, 4 * s.dit_hidden, dtype=d), True)
        )


def _activation(x: torch.Tensor, tanh: bool) -> Call:
    return Call((x, tanh), 2 * num_bytes(x))


def _networks(s: Sizes) -> dict[str, tuple[int, int, int]]:
    """Rows, outputs and inputs of linear maps beside the language model."""
    hidden, encoder = s.dit_hidden, 64 * s.encoder_heads
    return {
        "flow qkv": (s.chunk, 3 * hidden, hidden),
        "flow fc2": (s.chunk, hidden, 4 * hidden),
        "whisper fc1": (s.encoder_rows, 4 * encoder, encoder),
    }


def _linear_fixed(s: Sizes) -> Iterator[Case]:
    for name, shape in _networks(s).items():
        yield Case("linear_fixed", f"{name},T={shape[0]}", lambda m, size=shape: _fixed(m, *size))


def _fixed(m: Maker, rows: int, outputs: int, inputs: int) -> Call:
    x, bias = m.values(rows, inputs, dtype=torch.float32), m.values(outputs, dtype=torch.float32)
    weight = pack_fixed(m.values(outputs, inputs, dtype=torch.float32, scale=inputs**-0.5))
    moved = num_bytes(x, *weight, bias) + 4 * rows * outputs
    return Call((x, *weight, bias), moved, 2 * rows * outputs * inputs)


def _linear_panels(s: Sizes) -> Iterator[Case]:
    for name, shape in _networks(s).items():
        for dtype in (torch.float32, torch.bfloat16):
            label = f"{name},T={shape[0]},{str(dtype).removeprefix('torch.')}"
            yield Case("linear_panels", label, lambda m, size=shape, d=dtype: _in_panels(m, *size, d))


def _in_panels(m: Maker, rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> Call:
    x, bias = m.values(rows, inputs, dtype=dtype), m.values(outputs, dtype=dtype)
    panels = to_panels(m.values(outputs, inputs, dtype=dtype, scale=inputs**-0.5))
    moved = num_bytes(x, panels, bias) + x.itemsize * rows * outputs
    return Call((x, panels, bias), moved, 2 * rows * outputs * inputs)


def _conv1d(s: Sizes) -> Iterator[Case]:
    for (channels, length), (taps, dilation) in zip(s.vocoder, TAPS):
        for dtype in (torch.float32, torch.bfloat16):
            label = f"C={channels},T={length},k={taps},{str(dtype).removeprefix('torch.')}"
            size = (channels, length, taps, dilation)
            rounding = SPLIT if dtype == torch.float32 else 0.0
            yield Case("conv1d", label, lambda m, size=size, d=dtype: _convolution(m, *size, d), rounding=rounding)


def _convolution(m: Maker, channels: int, length: int, taps: int, dilation: int, dtype: torch.dtype) -> Call:
    """One convolution of a residual block with bias and residual."""
    x, residual = (m.values(1, channels, length, dtype=dtype) for _ in range(2))
    weight = m.values(channels, channels, taps, dtype=dtype, scale=(channels * taps) ** -0.5)
    bias = m.values(channels, dtype=dtype)
    operations = 2 * channels * channels * taps * length
    return Call((x, weight, bias, residual, dilation), num_bytes(x, weight, bias, residual, x), operations)
