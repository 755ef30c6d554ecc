"""Quantised linear maps: Triton against the references, the references against the formula, the packing."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.linear_fp8 import linear_fp8_triton, quantize_fp8
from antiphon_kernels.linear_fp8 import reference as linear_fp8
from antiphon_kernels.linear_fp8_silu_mul import linear_fp8_silu_mul_triton
from antiphon_kernels.linear_int4 import GROUP, linear_int4_triton
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int4 import reference as linear_int4
from antiphon_kernels.linear_int4_silu_mul import linear_int4_silu_mul_triton
from antiphon_kernels.linear_int8 import linear_int8_triton
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.linear_int8 import reference as linear_int8
from antiphon_kernels.linear_int8_silu_mul import linear_int8_silu_mul_triton
from antiphon_kernels.silu_mul import reference as silu_mul

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
    args = inputs_for(quantize_int8, rows, split, 37, 320, dtype)
    (out,) = compare("linear_int8", linear_int8_triton, linear_int8, *args)
    assert out.shape == (rows, 37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "split"), ROWS)
def test_linear_int4(compare, rows, split, dtype):
    args = inputs_for(quantize_int4, rows, split, 37, 3 * GROUP, dtype)
    (out,) = compare("linear_int4", linear_int4_triton, linear_int4, *args)
    assert out.shape == (rows, 37)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "split"), ROWS)
def test_linear_fp8(compare, rows, split, dtype):
    args = inputs_for(quantize_fp8, rows, split, 37, 300, dtype)
    (out,) = compare("linear_fp8", linear_fp8_triton, linear_fp8, *args)
    assert out.shape == (rows, 37)


def test_whole_range_of_the_nibbles(compare):
    """Every value -8 … 7 in both halves of a byte, and bytes above 127."""
    weight = torch.arange(256, dtype=torch.uint8)[None, None].repeat(1, 5, 1)
    x, scale = torch.randn(2, 512), torch.rand(1, 4, 5).bfloat16()
    (out,) = compare("linear_int4", linear_int4_triton, linear_int4, x, weight, scale, None, 2)
    assert out.shape == (2, 5)


def test_zero_rows_and_zero_weights_stay_finite():
    x, weight = torch.zeros(3, GROUP), torch.zeros(1, 4, GROUP)
    for quantise, run in ((quantize_int8, linear_int8), (quantize_int4, linear_int4), (quantize_fp8, linear_fp8)):
        assert (run(x, *quantise(weight), None, 3) == 0).all()


SCHEMES = {
    "int8": (quantize_int8, linear_int8, linear_int8_silu_mul_triton, 320),
    "int4": (quantize_int4, linear_int4, linear_int4_silu_mul_triton, 3 * GROUP),
    "fp8": (quantize_fp8, linear_fp8, linear_fp8_silu_mul_triton, 300),
}


def gated_inputs(scheme, rows, split, width, dtype):
    quantise, *_, inputs = SCHEMES[scheme]
    x, weight, scale, _, _ = inputs_for(quantise, rows, split, 2 * width, inputs, dtype)
    return x, weight, scale, split


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "split"), ROWS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gated(compare, scheme, rows, split, dtype):
    """Both halves and the activation in one pass; a width that no tile divides, so that the halves meet inside one."""
    _, linear, run, _ = SCHEMES[scheme]

    def formula(x, weight, scale, split):
        return silu_mul(linear(x, weight, scale, None, split))

    (out,) = compare(f"linear_{scheme}_silu_mul", run, formula, *gated_inputs(scheme, rows, split, 37, dtype))
    assert out.shape == (rows, 37)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gated_row_does_not_depend_on_the_rows_beside_it(scheme):
    x, weight, scale, _ = gated_inputs(scheme, 70, 70, 24, torch.bfloat16)
    run = SCHEMES[scheme][2]
    together = run(x, weight, scale, 70)
    for rows in (slice(3, 4), slice(8, 40)):
        n = rows.stop - rows.start
        assert torch.equal(run(x[rows], weight, scale, n), together[rows])
