"""Quantised linear maps: Triton against the references, the references against the formula, the packing."""

from __future__ import annotations

import pytest
import torch
from antiphon_kernels.linear_fp8 import linear_fp8_triton, quantise_fp8
from antiphon_kernels.linear_fp8 import reference as linear_fp8
from antiphon_kernels.linear_int4 import GROUP, dequantise_int4, linear_int4_triton, quantise_int4
from antiphon_kernels.linear_int4 import reference as linear_int4
from antiphon_kernels.linear_int8 import linear_int8_triton, quantise_int8
from antiphon_kernels.linear_int8 import reference as linear_int8

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS = [pytest.param(1, 1, id="one"), pytest.param(16, 9, id="skinny-mixed"), pytest.param(40, 17, id="medium"),
        pytest.param(90, 0, id="wide-audio")]  # fmt: skip


def inputs_for(quantise, rows, split, outputs, inputs, dtype):
    weight = torch.randn(1 if split == rows else 2, outputs, inputs) / inputs**0.5
    bias = torch.randn(weight.shape[:2]).to(dtype)
    return torch.randn(rows, inputs).to(dtype), *quantise(weight), bias, split


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "split"), ROWS)
def test_linear_int8(compare, rows, split, dtype):
    args = inputs_for(quantise_int8, rows, split, 37, 320, dtype)
    (out,) = compare("linear_int8", linear_int8_triton, linear_int8, *args)
    assert out.shape == (rows, 37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "split"), ROWS)
def test_linear_int4(compare, rows, split, dtype):
    args = inputs_for(quantise_int4, rows, split, 37, 3 * GROUP, dtype)
    (out,) = compare("linear_int4", linear_int4_triton, linear_int4, *args)
    assert out.shape == (rows, 37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "split"), ROWS)
def test_linear_fp8(compare, rows, split, dtype):
    args = inputs_for(quantise_fp8, rows, split, 37, 300, dtype)
    (out,) = compare("linear_fp8", linear_fp8_triton, linear_fp8, *args)
    assert out.shape == (rows, 37)


def test_whole_range_of_the_nibbles(compare):
    """Every value -8 … 7 in both halves of a byte, and bytes above 127."""
    weight = torch.arange(256, dtype=torch.uint8)[None, None].repeat(1, 5, 1)
    x, scale = torch.randn(2, 512), torch.rand(1, 5, 4)
    (out,) = compare("linear_int4", linear_int4_triton, linear_int4, x, weight, scale, None, 2)
    assert out.shape == (2, 5)


def test_int4_packing_is_two_runs_of_64():
    weight = torch.randint(-8, 8, (1, 3, 2 * GROUP)).float()
    packed, scale = quantise_int4(weight * 7 / 8)
    low = dequantise_int4(packed, scale, torch.float32)
    assert packed.shape == (1, 3, GROUP)
    assert (low - weight * 7 / 8).abs().max() <= scale.max() / 2 + 1e-6
    one = torch.zeros(1, 1, GROUP)
    one[..., 65] = 7
    assert quantise_int4(one)[0].flatten().tolist() == [0x88, 0xF8] + [0x88] * 62


@pytest.mark.parametrize(("quantise", "bound"), [(quantise_int8, 0.5 / 127), (quantise_int4, 0.5 / 7)])
def test_rounding_error_is_half_a_step(quantise, bound):
    weight = torch.randn(2, 8, 256)
    packed, scale = quantise(weight)
    if quantise is quantise_int8:
        back, largest = packed * scale[..., None], weight.abs().amax(-1, keepdim=True)
    else:
        back = dequantise_int4(packed, scale, torch.float32)
        largest = weight.unflatten(-1, (-1, GROUP)).abs().amax(-1, keepdim=True).expand(2, 8, 2, GROUP).flatten(-2)
    assert ((back - weight).abs() <= bound * largest * 1.0001).all()


def test_zero_rows_and_zero_weights_stay_finite():
    x, weight = torch.zeros(3, GROUP), torch.zeros(1, 4, GROUP)
    for quantise, run in ((quantise_int8, linear_int8), (quantise_int4, linear_int4), (quantise_fp8, linear_fp8)):
        assert (run(x, *quantise(weight), None, 3) == 0).all()
