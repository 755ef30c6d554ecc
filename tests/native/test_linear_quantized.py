"""int8 and int4 linear: packing, the native kernels against the reference, bitwise batch and thread invariance."""

from __future__ import annotations

import pytest
import torch

import antiphon_kernels as ak
from antiphon_kernels import linear_int4, linear_int8
from antiphon_kernels.linear_int4 import dequantize as dequantize_int4
from antiphon_kernels.linear_int4 import pack
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int8 import dequantize as dequantize_int8
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.native import available

DTYPES = [torch.float32, torch.bfloat16]
SCHEMES = {"int8": (linear_int8, quantize_int8), "int4": (linear_int4, quantize_int4)}
SHAPES = [  # rows, out, in, split
    (1, 1, 128, 1),  # smallest
    (2, 33, 128, 2),  # one row above two tiles
    (5, 47, 384, 2),  # both branches, nothing whole
    (9, 64, 256, 0),  # second branch alone, second group of rows
    (16, 31, 2048, 16),  # the most rows; long sums
    (3, 300, 1024, 3),  # W walked in runs of rows two pages long, and the rows that are left
    (6, 100, 128, 6),  # panels of one group each, the last one not whole
    (13, 65, 640, 0),  # rows of x and of weights that fill no second tile, groups of odd number
]


def build(scheme: str, rows: int, n: int, k: int, split: int, dtype: torch.dtype):
    torch.manual_seed(rows * n + k)
    branches = 1 if split == rows else 2
    weight, scale = SCHEMES[scheme][1](torch.randn(branches, n, k) / k**0.5)
    x = torch.randn(rows, k)
    x[:, 3] *= 30  # an outlier channel, as language models have
    return x.to(dtype), weight, scale, torch.randn(branches, n).to(dtype), split


def native(scheme: str, *args) -> torch.Tensor:
    with ak.use_backend("native"):
        return SCHEMES[scheme][0](*args)


def test_int8_rounds_to_the_nearest_level():
    weight = torch.randn(3, 7, 64)
    values, scale = quantize_int8(weight)
    assert (values.abs().amax(-1) == 127).all()
    assert ((dequantize_int8(values, scale, torch.float32) - weight).abs() <= scale[..., None] * 0.5001).all()
    assert (quantize_int8(torch.zeros(1, 2, 64))[0] == 0).all()


def test_int4_packs_what_it_unpacks():
    values = torch.randint(-8, 8, (2, 5, 3, 128)).float()
    one = torch.ones(2, 3, 5, dtype=torch.bfloat16)
    assert torch.equal(dequantize_int4(pack(values), one, torch.float32), values.flatten(-2))


def test_int4_error_is_within_half_a_level_where_nothing_is_clipped():
    weight = torch.randn(4, 256)
    packed, scale = quantize_int4(weight)
    assert packed.shape == (4, 128) and scale.shape == (2, 4)
    error = (dequantize_int4(packed, scale, torch.float32) - weight).square().mean().sqrt()
    assert error < 0.12  # of weights of variance 1; uniform rounding at max / 7 gives about 0.11


@pytest.mark.skipif(not available, reason="native module not built")
class TestNative:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_agrees_with_reference(self, scheme, shape, dtype, with_bias, isa, poison):
        x, weight, scale, bias, split = build(scheme, *shape, dtype)
        bias = bias if with_bias else None
        wide_bias = None if bias is None else bias.double()
        exact = SCHEMES[scheme][0].reference(x.double(), weight, scale, wide_bias, split)
        step = x.double().abs().amax(-1, keepdim=True) / 32512
        activation_error = step * 0.5 * weight_norm(scheme, weight, scale, split, len(x)) * 4  # four sigma
        bound = activation_error + torch.finfo(dtype).eps * exact.abs() + 1e-6 * exact.abs().max()
        used = ((native(scheme, x, weight, scale, bias, split) - exact).abs() / bound).max().item()
        print(f"{scheme} {shape} {dtype} {isa}: {100 * used:.0f} % of the error budget")
        assert used <= 1

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_row_is_the_same_at_every_batch_size_and_thread_count(self, scheme, dtype, isa, with_threads):
        x, weight, scale, bias, _ = build(scheme, 16, 75, 384, 16, dtype)
        rest = (weight, scale, bias)
        alone = torch.cat([with_threads(1, lambda t=t: native(scheme, x[t : t + 1], *rest, 1)) for t in range(16)])
        for rows in (2, 3, 7, 8, 9, 16):
            for threads in (1, 2, 3):
                out = with_threads(threads, lambda rows=rows: native(scheme, x[:rows], *rest, rows))
                assert torch.equal(out, alone[:rows]), (rows, threads)

    @pytest.mark.parametrize("shape", [(100, 128), (31, 384), (256, 640), (1, 1536)], ids=str)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_whole_and_partial_panels_give_a_row_the_same_result(self, scheme, shape, isa, with_threads):
        n, k = shape
        x, weight, scale, _, _ = build(scheme, 16, n, k, 16, torch.float32)
        alone = torch.cat(
            [with_threads(1, lambda t=t: native(scheme, x[t : t + 1], weight, scale, None, 1)) for t in range(16)]
        )
        for rows in (4, 5, 8, 9, 15, 16):
            for threads in (1, 2, 3):
                out = with_threads(threads, lambda rows=rows: native(scheme, x[:rows], weight, scale, None, rows))
                assert torch.equal(out, alone[:rows]), (rows, threads)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_result_is_the_same_on_every_instruction_set(self, scheme, dtype, isa):
        from antiphon_kernels import _native

        other = "scalar" if scheme == "int8" else "avx2"  # int4 adds up groups by fused multiply-add
        if other not in _native.available_isas() or (scheme == "int4" and isa == "scalar"):
            pytest.skip("a multiplication and an addition round twice without vectors")
        for rows in (1, 4, 9):
            args = build(scheme, rows, 47, 1152, min(rows, 4), dtype)
            _native.set_isa(isa)
            here = native(scheme, *args)
            _native.set_isa(other)
            assert torch.equal(here, native(scheme, *args))

    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_int8_is_rounded_once_at_its_limits(self, rows, isa):
        k = 9728  # sums of 2^35, and more products than 32 bits hold
        x = torch.full((5, k), 127.0 * 241)  # a step is one
        x[1:] *= torch.rand(4, k) * 2 - 1
        x[1:, 0] = 127 * 241
        weight = torch.full((1, 19, k), 127, dtype=torch.int8)
        weight[:, 1::3] *= -1
        weight[:, 2::3] = torch.randint(-127, 128, (1, 6, k))
        scale = torch.full((1, 19), 2.0**-20)
        exact = x[:rows].double().round() @ weight[0].double().T
        out = native("int8", x[:rows].contiguous(), weight, scale, None, rows)
        assert torch.equal(out, exact.float() * 2.0**-20)

    @pytest.mark.parametrize("rows", [1, 4, 16])
    def test_int4_is_exact_at_its_limits(self, rows, isa):
        largest = 127 * 241  # x becomes integers up to this one: nearly all of them here, against the outermost weights
        torch.manual_seed(rows)
        values = torch.arange(-largest, largest + 1)
        x = torch.cat((values, values[:225]))[torch.randperm(16 * 3840)].view(16, 3840).float()
        x[:, 5] = largest  # so that a step is one
        weight = torch.randint(0, 2, (1, 33, 30, 128)) * 15.0 - 8
        one = torch.ones(1, 30, 33, dtype=torch.bfloat16)
        exact = x[:rows].double() @ weight.flatten(-2)[0].double().T
        out = native("int4", x[:rows], pack(weight), one, None, rows)
        assert (out - exact).abs().max() <= 30 * 2.0 ** (exact.abs().max().log2().floor() - 24)  # one rounding a group

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_strided_inputs_zeros_and_many_rows(self, scheme, isa):
        x, weight, scale, bias, split = build(scheme, 5, 47, 384, 2, torch.bfloat16)
        expected = native(scheme, x, weight, scale, bias, split)
        apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
        shifted = torch.cat((weight.new_zeros(1), weight.flatten()))[1:].view(weight.shape)
        assert torch.equal(native(scheme, apart, shifted, scale, bias, split), expected)
        zeros = native(scheme, torch.zeros_like(x), weight, scale, bias, split)
        assert torch.equal(zeros[:2], bias[:1].expand(2, -1)) and torch.equal(zeros[2:], bias[1:].expand(3, -1))
        for rows in (40, 300):
            many = native(scheme, x[:1].expand(rows, -1), weight[:1], scale[:1], bias[:1], rows)
            if isa != "scalar":  # which widens weights for them
                assert torch.equal(many, expected[:1].expand(rows, -1))
            assert (many[-1] - expected[0]).abs().max() < 0.05 * expected.abs().max()


WIDE_SHAPES = [  # rows, out, in, split
    (17, 1, 128, 17),  # one row in a block of its own, one output
    (24, 33, 384, 24),  # half a block of rows; one output in a second tile
    (40, 100, 640, 16),  # both branches, whole and half blocks, a last panel of three tiles
    (57, 64, 256, 0),  # second branch alone, a block with 9 rows
    (30, 150, 1152, 21),  # branches with a row more than a block and with less than half of one; two chunks of columns
    (20, 20, 6272, 20),  # more columns than are copied at once
    (18, 1100, 128, 1),  # so many panels that threads claim them ahead
]


@pytest.mark.skipif(not available, reason="native module not built")
class TestWide:
    """The kernels for many rows, on every instruction set: tiles where there are some, the skinny kernels elsewhere."""

    @staticmethod
    def wide(scheme: str, *args) -> torch.Tensor:
        from antiphon_kernels.native import linear_quantized as module

        return module.native_linear(module.INT8 if scheme == "int8" else module.INT4, *args, wide=True)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", WIDE_SHAPES, ids=str)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_rows_have_the_result_they_have_alone(self, scheme, shape, dtype, isa, poison, with_threads):
        x, weight, scale, bias, split = build(scheme, *shape, dtype)
        few = with_threads(1, lambda: [native(scheme, x[t : t + 1], *branch(weight, scale, bias, t >= split), 1)
                                       for t in range(len(x))])  # fmt: skip
        for threads in (1, 2, 3):
            out = with_threads(threads, lambda: self.wide(scheme, x, weight, scale, bias, split))
            assert torch.equal(out, torch.cat(few)), threads

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_a_row_is_the_same_at_every_number_of_rows(self, scheme, isa, with_threads):
        x, weight, scale, _, _ = build(scheme, 200, 75, 384, 200, torch.bfloat16)
        alone = torch.cat([native(scheme, x[t : t + 1], weight, scale, None, 1) for t in range(200)])
        for rows in (1, 8, 16, 17, 40, 200):
            for threads in (1, 2, 3):
                out = with_threads(threads, lambda rows=rows: self.wide(scheme, x[:rows], weight, scale, None, rows))
                assert torch.equal(out, alone[:rows]), (rows, threads)

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_strided_inputs_and_zeros(self, scheme, isa):
        x, weight, scale, bias, split = build(scheme, 40, 47, 384, 21, torch.bfloat16)
        expected = self.wide(scheme, x, weight, scale, bias, split)
        rows_apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, :384]
        columns_apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
        shifted = torch.cat((weight.new_zeros(1), weight.flatten()))[1:].view(weight.shape)
        for apart in (rows_apart, columns_apart):
            assert torch.equal(self.wide(scheme, apart, shifted, scale, bias, split), expected)
        x[30] = 0
        out = self.wide(scheme, x, weight, scale, bias, split)
        assert torch.equal(out[30], bias[1]) and torch.equal(out[31:], expected[31:])
        assert self.wide(scheme, x[:0], weight, scale, bias, 0).shape == (0, 47)


def branch(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, second: bool) -> tuple[torch.Tensor, ...]:
    """Weights, scales and bias of the branch that a row uses."""
    last = len(weight) - 1 if second else 0
    return weight[last : last + 1], scale[last : last + 1], bias[last : last + 1]


def weight_norm(scheme: str, weight: torch.Tensor, scale: torch.Tensor, split: int, rows: int) -> torch.Tensor:
    """[rows, out]: the Euclidean norm of the weights that each output sees."""
    wide = (dequantize_int8 if scheme == "int8" else dequantize_int4)(weight, scale, torch.float64).norm(dim=-1)
    return torch.cat((wide[:1].expand(split, -1), wide[-1:].expand(rows - split, -1)))
