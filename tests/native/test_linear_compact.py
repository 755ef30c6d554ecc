"""Native compact weights: bytes as the reference packs them, and results that are those of the plain weights, bit for bit."""

from __future__ import annotations

import sys

import pytest
import torch
from compact_matrices import COMMON, bits, matrix

import antiphon_kernels as ak
from antiphon_kernels import count_calls, linear, linear_compact
from antiphon_kernels.linear_compact import compact, reference_compact, reference_widen, widen
from antiphon_kernels.native import available, prefers_compact

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels import _native
from antiphon_kernels.native.linear import MAX_ROWS, wide_linear
from antiphon_kernels.native.linear_compact import launch

SHAPES = [  # rows, out, in, split
    (1, 1, 128, 1),  # smallest
    (2, 33, 128, 2),  # one row of W above two tiles
    (5, 47, 384, 2),  # both branches, nothing whole
    (9, 64, 256, 0),  # second branch alone, second group of rows
    (16, 31, 2048, 16),  # the most rows; long sums
    (3, 300, 1024, 3),  # W walked in runs of rows two pages long, and the rows that are left
    (13, 65, 640, 0),  # rows of x and of W that fill no second tile, groups of odd number
    (16, 130, 4736, 7),  # more columns than a chunk of depths
    (3, 37, 4736, 2),  # few rows, more columns than are widened at once
]
WIDE_SHAPES = [
    (17, 33, 128, 17),  # one row and one column past a tile
    (64, 32, 256, 64),  # whole tiles
    (40, 70, 4736, 23),  # both branches, nothing whole; longer than a chunk of depths
    (96, 16, 1152, 0),  # second branch alone; half a block of columns
    (97, 75, 384, 49),  # 49 rows and 48: one more than have all their sums in tiles, and as many
    (290, 40, 2176, 260),  # a branch whose rows pass in two parts, and one of few rows
    (150, 102, 4736, 149),  # one that does not stay in a cache: two panels at a time, short chunks
    (140, 810, 4736, 140),  # of one thread six at a time, then two
]


def edges(rows: int, inputs: int) -> list[tuple[int, int]]:
    """Places in the first and last column of the first and last row, at ends of groups, and here and there between, at most
    one in 64: rows with several, with one and without."""
    places = [(r, c) for r in (0, rows - 1) for c in (0, inputs - 1, 127, inputs - 128, 64, 31)]
    places += [(r, (37 * r) % inputs) for r in range(0, rows, 3)]
    return list(dict.fromkeys(places))[: rows * inputs // 64]


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def dtype(request) -> torch.dtype:
    """Of the rows: bfloat16, or float32, which meets the same weights widened."""
    return request.param


def build(rows: int, n: int, k: int, split: int, dtype: torch.dtype = torch.bfloat16):
    """x, plain weights, the same compact, bias; escapes are in every branch."""
    torch.manual_seed(rows * n + k)
    branches = 1 if split == rows else 2
    weight = matrix(branches * n, k, edges(branches * n, k)).view(branches, n, k)
    packed, codes = packed_natively(weight)
    assert len(codes) > 5 + branches * n
    x, bias = torch.randn(rows, k), torch.randn(branches, n)
    return x.to(dtype), weight, packed, codes, bias.to(dtype)


def packed_natively(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    with ak.use_backend("native"):
        return compact(weight)


def widened_natively(packed: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    with ak.use_backend("native"):
        return widen(packed, codes)


def plain(x, weight, bias, split) -> torch.Tensor:
    """With the weights in x's dtype. Of many float32 rows our kernel's own results, where the operator prefers PyTorch's."""
    weight = weight.to(x.dtype)
    if x.dtype == torch.float32 and max(split, len(x) - split) > MAX_ROWS and _native.isa() != "scalar":
        return wide_linear(x, weight, bias, split)
    with ak.use_backend("native"):
        return linear(x, weight, bias, split)


def native(x, packed, codes, bias, split) -> torch.Tensor:
    with ak.use_backend("native"):
        return linear_compact(x, packed, codes, bias, split)


def same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits, or none of both: which NaN comes out of a sum is nobody's promise."""
    none = a.isnan()
    return torch.equal(none, b.isnan()) and same_bits(a[~none], b[~none])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of either dtype."""
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


class TestPacking:
    def test_the_native_functions_run(self, monkeypatch):
        """Where they are chosen; else the tests below would compare the reference with itself."""
        module, weight = sys.modules["antiphon_kernels.linear_compact"], matrix(3, 128)
        for name in ("reference_compact", "reference_widen"):
            monkeypatch.setattr(module, name, None)
        assert torch.equal(bits(widened_natively(*packed_natively(weight))), bits(weight))
        with ak.use_backend("reference"), pytest.raises(TypeError):
            compact(weight)

    @pytest.mark.parametrize("rows, inputs", [(1, 128), (3, 384), (70, 256), (5, 18944)])
    def test_bytes_and_codes_are_the_reference_s(self, rows, inputs, isa, with_threads):
        weight = matrix(rows, inputs, edges(rows, inputs))[None]
        expected = reference_compact(weight)
        for threads in (1, 2, 3):
            got = with_threads(threads, lambda: packed_natively(weight))
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, expected))
            assert torch.equal(bits(with_threads(threads, lambda got=got: widened_natively(*got))), bits(weight))
        assert torch.equal(bits(reference_widen(*got)), bits(weight))

    @pytest.mark.parametrize("row", [0, 40, 63])
    def test_a_row_of_escapes_and_one_too_many(self, row, isa):
        full = [(row, column) for column in range(128)]
        weight = matrix(64, 128, full)
        packed, codes = packed_natively(weight)
        assert len(codes) == 5 + 64 + 128 and torch.equal(bits(widened_natively(packed, codes)), bits(weight))
        assert torch.equal(codes, reference_compact(weight)[1])
        assert packed_natively(matrix(64, 128, [*full, (30, 7)])) is None

    def test_no_bit_is_lost_of_any_value(self, isa):
        """Zeros and denormals of both signs, infinities, every NaN; all but sixteen upper bytes are escapes."""
        weight = matrix(4096, 1024)
        bits(weight)[::32, 300:812] = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).short().view(128, 512)
        packed, codes = packed_natively(weight)
        assert len(codes) == 5 + 4096 + 240 * 256
        assert torch.equal(bits(widened_natively(packed, codes)), bits(weight))

    def test_random_bits_stay_plain(self, isa):
        weight = torch.randint(-(1 << 15), 1 << 15, (64, 256), dtype=torch.int16).view(torch.bfloat16)
        assert packed_natively(weight) is None

    def test_rows_apart_and_two_dimensions(self, isa):
        weight = matrix(40, 256, edges(40, 256))
        apart = torch.cat((weight, torch.full_like(weight, torch.nan)), 1)[:, :256]
        got = packed_natively(apart)
        assert got[0].shape == (40, 384) and all(torch.equal(a, b) for a, b in zip(got, reference_compact(weight)))


class TestFewRows:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_equals_the_plain_weights(self, shape, with_bias, isa, dtype, poison, with_threads):
        (x, weight, packed, codes, bias), split = build(*shape, dtype), shape[3]
        bias = bias if with_bias else None
        expected = plain(x, weight, bias, split)
        assert expected.isfinite().all()
        for threads in (1, 2, 3, 7):  # of seven some find no rows of their own
            with count_calls() as calls:
                out = with_threads(threads, lambda: native(x, packed, codes, bias, split))
            assert calls["linear_compact", "native"] == 1 and not calls["linear", "native"]
            assert same_bits(out, expected), threads

    @pytest.mark.parametrize("n, k", [(75, 384), (250, 640)], ids=["rows", "runs"])
    def test_every_number_of_rows(self, n, k, isa, dtype, with_threads):
        x, weight, packed, codes, bias = build(16, n, k, 16, dtype)
        for rows in range(1, 17):
            out = with_threads(1 + rows % 3, lambda rows=rows: native(x[:rows], packed, codes, bias, rows))
            assert same_bits(out, plain(x[:rows], weight, bias, rows)), rows

    def test_every_split(self, isa, dtype):
        x, weight, packed, codes, bias = build(6, 40, 256, 2, dtype)
        for split in range(7):
            assert torch.equal(native(x, packed, codes, bias, split), plain(x, weight, bias, split)), split

    def test_unaligned_and_strided_inputs(self, isa, dtype):
        x, weight, packed, codes, bias = build(5, 47, 384, 2, dtype)
        expected = plain(x, weight, bias, 2)
        shifted = torch.cat((packed.new_zeros(1), packed.flatten()))[1:].view(packed.shape)
        rows_apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, :384]
        columns_apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
        for other in (rows_apart, columns_apart):
            assert torch.equal(native(other, shifted, codes, bias, 2), expected)

    def test_a_row_full_of_escapes(self, isa, dtype):
        """In the middle of a tile and in its first and last row: the others' results do not see them."""
        for row in (0, 15, 16, 20, 63):
            weight = matrix(64, 128, [(row, column) for column in range(128)])[None]
            x = torch.randn(3, 128).to(dtype)
            assert torch.equal(native(x, *packed_natively(weight), None, 3), plain(x, weight, None, 3)), row

    def test_numbers_of_every_kind(self, isa, dtype):
        """Zeros, denormals, infinities and NaN in rows of their own, by code and as escapes."""
        weight, x = matrix(80, 256, edges(80, 256), COMMON[:14]), torch.randn(4, 256).to(dtype)
        special = torch.tensor([0.0, -0.0, 1e-40, -1e-40, torch.inf, -torch.inf, torch.nan]).bfloat16()
        for row, value in enumerate(special):
            weight[3 * row, 5] = value  # few: escapes
        weight[60:70], weight[70:72] = 0, -0.0  # so many that they have codes
        packed, codes = packed_natively(weight[None])
        assert {0x00, 0x80} < set(codes[:4].view(torch.uint8).tolist()) and len(codes) > 5 + 80 + 20
        got, expected = native(x, packed, codes, None, 4), plain(x, weight[None], None, 4)
        assert expected.isnan().any() and expected.isinf().any() and (expected[:, 60:70] == 0).all()
        assert same_numbers(got, expected)

    def test_no_rows(self, isa, dtype):
        x, _, packed, codes, bias = build(4, 20, 128, 2, dtype)
        assert native(x[:0], packed, codes, bias, 0).shape == (0, 20)


class TestManyRows:
    @pytest.mark.parametrize("shape", WIDE_SHAPES, ids=str)
    def test_equals_the_plain_weights(self, shape, isa, dtype, poison, with_threads):
        (x, weight, packed, codes, bias), split = build(*shape, dtype), shape[3]
        for threads in (1, 2, 3):
            out = with_threads(threads, lambda: native(x, packed, codes, bias, split))
            assert same_bits(out, plain(x, weight, bias, split)), threads

    def test_a_row_has_the_same_result_in_any_company(self, isa, dtype, with_threads):
        x, weight, packed, codes, bias = build(50, 75, 384, 50, dtype)
        alone = torch.cat([wide_linear(x[t : t + 1], weight.to(dtype), bias, 1) for t in range(50)])
        for rows in (1, 8, 16, 17, 32, 33, 48, 50):
            for threads in (1, 2, 3):
                out = with_threads(threads, lambda rows=rows: launch(x[:rows], packed, codes, bias, rows, wide=True))
                assert torch.equal(out, alone[:rows]), (rows, threads)

    def test_unaligned_and_strided_inputs(self, isa, dtype):
        x, weight, packed, codes, bias = build(40, 70, 640, 23, dtype)
        expected = plain(x, weight, bias, 23)
        shifted = torch.cat((packed.new_zeros(1), packed.flatten()))[1:].view(packed.shape)
        rows_apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, :640]
        columns_apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
        for other in (rows_apart, columns_apart):
            assert torch.equal(native(other, shifted, codes, bias, 23), expected)

    def test_numbers_that_are_none_stay_in_their_row_and_column(self, isa, dtype):
        x, weight, _, _, bias = build(20, 33, 128, 20, dtype)
        x[3, 5], weight[0, 7, 9] = torch.inf, torch.nan
        got, expected = native(x, *packed_natively(weight), bias, 20), plain(x, weight, bias, 20)
        assert got[:, 7].isnan().all() and not got[3].isfinite().any()
        assert same_numbers(got, expected)


def test_what_it_takes(isa):
    """Rows and bias of one dtype and contiguous bytes; anything else is another backend's."""
    x, _, packed, codes, bias = build(5, 47, 384, 2)
    takes = ak.operators()["linear_compact"].supports
    assert takes("native", x, packed, codes, bias, 2) and takes("native", x, packed, codes, None, 2)
    assert takes("native", x.float(), packed, codes, bias.float(), 2) and takes("native", x.float(), packed, codes, None, 2)
    assert not takes("native", x, packed, codes, bias.float(), 2) and not takes("native", x.float(), packed, codes, bias, 2)
    assert not takes("native", x.half(), packed, codes, None, 2)
    assert not takes("native", x, packed.transpose(0, 1), codes, bias, 2)
    assert not takes("native", x, packed, codes.long(), bias, 2)


def test_where_it_pays(isa):
    assert prefers_compact(torch.bfloat16) == (isa in ("avx512bf16", "amx"))
    assert prefers_compact(torch.bfloat16, many_rows=True) == (isa == "amx")
    assert prefers_compact(torch.float32) == (isa not in ("scalar", "amx"))
    assert not prefers_compact(torch.float32, many_rows=True)
    with ak.use_backend("reference"):
        assert not any(prefers_compact(kind, many) for kind in (torch.bfloat16, torch.float32) for many in (False, True))
