"""Triton linear maps against the reference: tile edges, both branches, the gated form."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.linear import linear_tile, linear_triton
from antiphon_kernels.linear import reference as linear
from antiphon_kernels.linear_silu_mul import linear_silu_mul_triton
from antiphon_kernels.silu_mul import reference as silu_mul

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def weights(branches, outputs, inputs, dtype):
    """Scaled so that results are O(1)."""
    return (torch.randn(branches, outputs, inputs) / inputs**0.5).to(dtype), torch.randn(branches, outputs).to(dtype)


def gated(x, weight, split):
    return silu_mul(linear(x, weight, None, split))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [
        pytest.param(1, 1, 1, id="one-value"),
        pytest.param(1, 37, 61, id="primes"),
        pytest.param(16, 33, 256, id="skinny-full"),
        pytest.param(17, 31, 257, id="just-wider"),
        pytest.param(64, 32, 128, id="medium-full"),
        pytest.param(65, 129, 130, id="just-wide"),
        pytest.param(130, 64, 64, id="wide-tail"),
    ],
)
def test_linear(compare, rows, outputs, inputs, dtype):
    weight, bias = weights(1, outputs, inputs, dtype)
    x = torch.randn(rows, inputs).to(dtype)
    (out,) = compare("linear", linear_triton, linear, x, weight, bias, rows)
    assert out.shape == (rows, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "split"), [(9, 0), (9, 1), (9, 9), (40, 17), (90, 20)], ids=["audio", "one-text", "text", "medium", "wide"]
)
def test_two_branches_with_different_row_counts(compare, rows, split, dtype):
    weight, bias = weights(2, 48, 96, dtype)
    x = torch.randn(rows, 96).to(dtype)
    compare("linear", linear_triton, linear, x, weight, bias, split)
    (out,) = compare("linear, no bias", linear_triton, linear, x, weight, None, split)
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "split", "width", "inputs"), [(3, 2, 24, 96), (33, 20, 40, 65), (70, 70, 65, 64)], ids=["skinny", "medium", "wide"]
)
def test_linear_silu_mul(compare, rows, split, width, inputs, dtype):
    weight, _ = weights(1 if split == rows else 2, 2 * width, inputs, dtype)
    x = 3 * torch.randn(rows, inputs)
    (out,) = compare("linear_silu_mul", linear_silu_mul_triton, gated, x.to(dtype), weight, split)
    assert out.shape == (rows, width)


def test_strided_rows(compare):
    weight, bias = weights(1, 20, 32, torch.float32)
    x = torch.randn(5, 3, 32)[:, 1]
    (out,) = compare("linear", linear_triton, linear, x, weight, bias, 5)
    assert out.is_contiguous()


def test_every_tile_fits_the_smallest_shared_memory():
    """Operands of all steps in flight stay under the 99 KiB of sm_86, sm_89 and sm_120."""
    for rows in (1, 16, 17, 64, 65, 4096):
        for matrices in (1, 2):
            for dtype in DTYPES:
                t = linear_tile(rows, 18944, matrices, dtype, wgmma=False)
                assert (t.M + matrices * t.N) * t.K * dtype.itemsize * t.num_stages <= 101_376
