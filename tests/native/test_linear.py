"""Native linear: few rows, one or two branches, bit for bit the same row at every batch size and thread count."""

from __future__ import annotations

import pytest
import torch

import antiphon_kernels as ak
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.linear import wide_linear

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [
    (1, 1, 1, 1),  # smallest
    (1, 7, 31, 1),  # below every block: one vector, one tile, four rows
    (4, 33, 64, 4),  # one row above two tiles; whole vectors
    (5, 47, 100, 2),  # both branches; second group of columns; a ragged row end
    (9, 64, 2100, 0),  # second branch alone; two chunks of columns
    (16, 31, 97, 16),  # the most rows
    (16, 130, 257, 7),  # both branches, nothing whole
    (3, 250, 600, 3),  # W walked in runs of rows two pages long, and the rows that are left
]


def build(rows: int, n: int, k: int, split: int, dtype: torch.dtype):
    torch.manual_seed(rows * n + k)
    branches = 1 if split == rows else 2
    weight = torch.randn(branches, n, k).to(dtype) / k**0.5
    return torch.randn(rows, k).to(dtype), weight.to(dtype), torch.randn(branches, n).to(dtype), split


def native(*args) -> torch.Tensor:
    with ak.use_backend("native"):
        return ak.linear(*args)


def apart(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` with something between its rows that is not to be read."""
    return torch.cat((weight, torch.full_like(weight[..., :32], torch.nan)), dim=-1)[..., : weight.shape[-1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_agrees_with_reference(shape, dtype, with_bias, isa, poison):
    x, weight, bias, split = build(*shape, dtype)
    bias = bias if with_bias else None
    exact = ak.linear.reference(x.double(), weight.double(), None if bias is None else bias.double(), split)
    own = (ak.linear.reference(x, weight, bias, split) - exact).abs().max()
    one_by_one = torch.finfo(torch.float32).eps * x.shape[1] ** 0.5  # the scalar version rounds after every product
    bound = 2 * own + (torch.finfo(dtype).eps + one_by_one) * exact.abs().max()
    used = ((native(x, weight, bias, split) - exact).abs().max() / bound).item()
    print(f"linear {shape} {dtype} {isa}: {100 * used:.0f} % of the error budget")
    assert used <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k", [(75, 300), (250, 600)], ids=["rows", "runs"])
def test_a_row_is_the_same_at_every_batch_size_and_thread_count(n, k, dtype, isa, with_threads):
    x, weight, bias, _ = build(16, n, k, 16, dtype)
    alone = torch.cat([with_threads(1, lambda t=t: native(x[t : t + 1], weight, bias, 1)) for t in range(16)])
    for rows in (2, 3, 4, 5, 8, 11, 16):
        for threads in (1, 2, 3):
            out = with_threads(threads, lambda rows=rows: native(x[:rows], weight, bias, rows))
            assert torch.equal(out, alone[:rows]), (rows, threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_in_either_branch(dtype, isa):
    x, weight, bias, _ = build(6, 40, 96, 2, dtype)
    both = native(x, weight, bias, 2)
    assert torch.equal(both[:2], native(x[:2], weight[:1], bias[:1], 2))
    assert torch.equal(both[2:], native(x[2:], weight[1:], bias[1:], 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_and_strided_inputs(dtype, isa):
    x, weight, bias, split = build(5, 47, 100, 2, dtype)
    expected = native(x, weight, bias, split)
    shifted = torch.cat((weight.new_zeros(1), weight.flatten()))[1:].view(weight.shape)
    rows_apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, :100]
    columns_apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    for other in (rows_apart, columns_apart):
        assert torch.equal(native(other, shifted, bias, split), expected)
    assert torch.equal(native(x, apart(weight), bias, split), expected)


def test_many_rows_go_where_they_are_fastest_and_no_rows_are_fine(isa):
    x, weight, bias, _ = build(40, 20, 30, 40, torch.float32)
    by = ak.linear.reference if isa in ("scalar", "amx") else wide_linear
    assert torch.equal(native(x, weight, bias, 40), by(x, weight, bias, 40))
    assert native(x[:0], weight, bias, 0).shape == (0, 20)


WIDE_SHAPES = [
    (17, 33, 64, 17),  # one row and one column past a tile
    (64, 32, 32, 64),  # whole tiles, one depth
    (40, 70, 4640, 23),  # both branches, nothing whole; longer than a chunk of depths
    (96, 16, 1088, 0),  # second branch alone; half a block of columns
    (290, 40, 2080, 260),  # a branch whose rows pass in two parts
    (150, 102, 4640, 149),  # one that does not stay in a cache: two panels at a time, three short chunks
    (142, 810, 4640, 142),  # of one thread six at a time, then two
    (41, 45, 299, 18),  # no whole words, no whole vectors, of vectors one block and three
    (1060, 34, 72, 1050),  # more rows than pass by a panel of W for vectors, three times
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestWide:
    """Tens of rows, on every instruction set: tiles of bfloat16 where there are some, vectors elsewhere."""

    @staticmethod
    def budget(x, weight, bias, split):
        exact = ak.linear.reference(x.double(), weight.double(), bias.double(), split)
        own = (ak.linear.reference(x, weight, bias, split) - exact).abs().max()
        one_by_one = torch.finfo(torch.float32).eps * x.shape[1] ** 0.5
        return exact, 2 * own + (torch.finfo(x.dtype).eps + one_by_one) * exact.abs().max()

    @pytest.mark.parametrize("shape", WIDE_SHAPES, ids=str)
    def test_agrees_with_reference(self, shape, dtype, isa, poison, with_threads):
        x, weight, bias, split = build(*shape, dtype)
        exact, bound = self.budget(x, weight, bias, split)
        for threads in (1, 3):
            out = with_threads(threads, lambda: wide_linear(x, weight, bias, split))
            used = ((out - exact).abs().max() / bound).item()
            print(f"wide linear {shape} {dtype} {isa}: {100 * used:.0f} % of the error budget")
            assert used <= 1

    @pytest.mark.parametrize(("num_rows", "outputs", "inputs"), [(50, 75, 320), (145, 810, 4640)], ids=str)
    def test_a_row_has_the_same_result_in_any_company(self, num_rows, outputs, inputs, dtype, isa, with_threads):
        """With tiles, and one lane, also the one it has among few."""
        if isa == "scalar":
            outputs = min(outputs, 75)  # panels of two outputs: these are many
        x, weight, bias, _ = build(num_rows, outputs, inputs, num_rows, dtype)
        by = native if isa == "scalar" or (isa == "amx" and dtype == torch.bfloat16) else wide_linear
        alone = torch.cat([by(x[t : t + 1], weight, bias, 1) for t in range(num_rows)])
        for rows in (1, 17, 27, 33, 40, num_rows):
            for threads in (1, 2, 3):
                out = with_threads(threads, lambda rows=rows: wide_linear(x[:rows], weight, bias, rows))
                assert torch.equal(out, alone[:rows]), (rows, threads)

    @pytest.mark.parametrize("inputs", [192, 299, 3072])
    def test_sizes_cost_no_accuracy(self, inputs, dtype, isa):
        """Rows and outputs of any size, with columns that stand out or far from zero, each against its own."""
        x, weight, _, _ = build(36, 41, inputs, 36, torch.float32)
        x[:, 7] *= 30
        x[10:20] = x[10:20] + 3
        x *= 10.0 ** torch.arange(-18, 18)[:, None]
        weight *= 10.0 ** torch.linspace(-9, 9, 41)[:, None]
        x[5] = 0
        x, weight = x.to(dtype), weight.to(dtype)
        exact = x.double() @ weight[0].double().T
        norms = x.double().norm(dim=1)[:, None] * weight[0].double().norm(dim=1)
        error = (wide_linear(x, weight, None, len(x)) - exact).abs()
        assert (error <= torch.finfo(dtype).eps * exact.abs() + 6e-7 * norms).all()

    @pytest.mark.parametrize("inputs", [544, 299])
    def test_unaligned_and_strided_inputs(self, inputs, dtype, isa):
        x, weight, bias, split = build(40, 70, inputs, 23, dtype)
        shifted = torch.cat((weight.new_zeros(1), weight.flatten()))[1:].view(weight.shape)
        rows_apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, :inputs]
        expected = wide_linear(x, weight, bias, split)
        assert torch.equal(wide_linear(rows_apart, shifted, bias, split), expected)
        assert torch.equal(wide_linear(x, apart(weight), bias, split), expected)

    def test_numbers_that_are_none_stay_in_their_row(self, dtype, isa):
        x, weight, bias, split = build(20, 33, 64, 20, dtype)
        expected = wide_linear(x, weight, bias, split)
        x[3, 5] = torch.inf
        out = wide_linear(x, weight, bias, split)
        assert not out[3].isfinite().any() and torch.equal(out[4:], expected[4:]) and torch.equal(out[:3], expected[:3])
