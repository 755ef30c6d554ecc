"""Compact weights: the format read byte by byte, what stays plain, and that not a bit is lost."""

from __future__ import annotations

import math

import pytest
import torch
from compact_matrices import COMMON, RARE, bits, matrix

from antiphon.planner.op_costs import Lengths, operator_cost
from antiphon_kernels import linear, linear_compact, use_backend
from antiphon_kernels.linear_compact import compact, reference_compact, reference_widen, widen

CORNERS = [(0, 0), (0, 1), (0, 127), (0, 128), (0, 255), (2, 255), (3, 0), (7, 31), (7, 32), (7, 63), (7, 64), (7, 255)]
"""Escapes in the first and the last column, on both sides of groups and runs, next to each other, in rows between empty ones."""


@pytest.fixture(autouse=True)
def reference_backend():
    """The specification, whatever is built."""
    with use_backend("reference"):
        yield


def read(weight: torch.Tensor, codes: torch.Tensor, rows: int, inputs: int) -> list[list[int]]:
    """The bits that the bytes stand for, by the words of the module's description alone."""
    table, words = bytes(codes[:4].view(torch.uint8).tolist()), codes.tolist()
    starts, found = words[4 : 5 + rows], []
    assert starts[0] == 5 + rows and starts[-1] == len(words)
    for r, row in enumerate(weight.view(rows, -1).tolist()):
        values = []
        for c in range(inputs):
            group, h, s, j, e = row[c // 128 * 192 :][:192], c // 64 % 2, c // 32 % 2, c // 8 % 4, c % 8
            i = 16 * j + 8 * s + e
            code = group[128 + i] >> 4 if h else group[128 + i] & 15
            values.append(table[code] << 8 | group[64 * h + i])
        escapes = words[starts[r] : starts[r + 1]]
        assert escapes == sorted(escapes), "columns ascend"
        for escape in escapes:
            assert values[escape >> 8] >> 8 == table[0], "an escape's code is 0"
            values[escape >> 8] = values[escape >> 8] & 255 | (escape & 255) << 8
        found.append(values)
    return found


@pytest.mark.parametrize("escapes", [[], CORNERS], ids=["no escapes", "escapes"])
@pytest.mark.parametrize("inputs", [128, 384])
def test_the_format(inputs, escapes):
    escapes = [(row, column) for row, column in escapes if column < inputs]
    weight = matrix(9, inputs, escapes)
    packed, codes = reference_compact(weight[None])
    assert packed.dtype == torch.uint8 and packed.shape == (1, 9, inputs * 3 // 2)
    assert codes.dtype == torch.int32 and codes.shape == (5 + 9 + len(escapes),)
    assert read(packed, codes, 9, inputs) == (bits(weight).int() & 0xFFFF).tolist()
    assert [(r, c >> 8) for r in range(9) for c in codes[codes[4 + r] : codes[5 + r]].tolist()] == escapes


def test_the_table_holds_the_most_frequent_bytes_the_smaller_first():
    """0x3f 70 times; 0xbf and 0x3e as often as each other; then bytes that are nowhere, from 0 on."""
    upper = torch.tensor([0x3F] * 70 + [0xBF] * 29 + [0x3E] * 29, dtype=torch.int32)
    weight = (upper << 8).to(torch.int16).view(torch.bfloat16)[None, None]
    _, codes = reference_compact(weight)
    assert codes[:4].view(torch.uint8).tolist() == [0x3F, 0x3E, 0xBF, *range(13)]


def every_value() -> torch.Tensor:
    """All 65536 bfloat16 in one row each of their own, among so many common weights that nothing is refused."""
    all_bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    common = bits(matrix(1, 1 << 22)).view(128, -1)
    common[:, 64 : 64 + 512] = all_bits.view(128, -1)
    return common.view(torch.bfloat16)


def test_no_bit_is_lost_of_any_value():
    """Zeros and denormals of both signs, infinities, every NaN."""
    weight = every_value()
    packed, codes = reference_compact(weight)
    assert len(codes) - 5 - 128 == 240 * 256, "all but sixteen upper bytes are escapes"
    assert torch.equal(bits(reference_widen(packed, codes)), bits(weight))


@pytest.mark.parametrize("shape", [(3, 256), (1, 3, 256), (2, 5, 128), (2, 1, 640)], ids=str)
def test_shapes(shape):
    weight = matrix(math.prod(shape[:-1]), shape[-1]).view(shape)
    packed, codes = compact(weight)
    assert packed.shape == (*shape[:-1], shape[-1] * 3 // 2)
    assert widen(packed, codes).shape == shape and torch.equal(bits(widen(packed, codes)), bits(weight))


def test_rows_apart_and_transposed():
    weight = matrix(256, 256, [(1, 5)])
    for other in (torch.cat((weight, weight), 1)[:, 128:384], weight.T):
        assert torch.equal(bits(widen(*compact(other))), bits(other.contiguous()))


@pytest.mark.parametrize("one_more", [False, True])
@pytest.mark.parametrize("row", [0, 63])
def test_one_escape_in_64_weights_is_the_limit(row, one_more):
    """A whole row of them in a matrix of 64 rows, and one more in another row."""
    escapes = [(row, column) for column in range(128)] + [(30, 7)] * one_more
    weight = matrix(64, 128, escapes)
    pair = compact(weight)
    assert (pair is None) == one_more
    if pair is not None:
        assert len(pair[1]) == 5 + 64 + 128 and torch.equal(bits(widen(*pair)), bits(weight))


@pytest.mark.parametrize(
    "weight",
    [
        torch.randint(-(1 << 15), 1 << 15, (64, 256), dtype=torch.int16).view(torch.bfloat16),
        matrix(64, 256).float(),
        matrix(64, 192),
        matrix(64, 256)[:0],
    ],
    ids=["random bits", "float32", "no whole groups", "nothing"],
)
def test_what_stays_plain(weight):
    assert compact(weight) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_reference_is_that_of_the_plain_weights(dtype):
    weight = matrix(2 * 20, 256, CORNERS).view(2, 20, 256)
    x, bias = torch.randn(7, 256, dtype=dtype), torch.randn(2, 20, dtype=dtype)
    packed, codes = compact(weight)
    for split in (0, 3, 7):
        expected = linear.reference(x, weight.to(dtype), bias, split)
        assert torch.equal(linear_compact(x, packed, codes, bias, split), expected)


def test_what_a_call_costs():
    """12 bits a weight of the branches that have rows, codes and rows; operations of the plain product."""
    weight = matrix(2 * 32, 256).view(2, 32, 256)
    packed, codes = compact(weight)
    x = torch.zeros(6, 256, dtype=torch.bfloat16)
    for split, branches in ((6, 1), (0, 1), (2, 2)):
        cost = operator_cost("linear_compact", (x, packed, codes, None, split), x.new_empty(6, 32), Lengths())
        weights = branches * (32 * 256 * 12 // 8 + codes.nbytes // 2)
        assert abs(cost.num_bytes - weights - 2 * 6 * (256 + 32)) <= 2
        assert cost.flops == 2 * 6 * 32 * 256


def test_common_and_rare_bytes_are_what_the_tests_think():
    """Sixteen and others: otherwise no test above would have the escapes that it wants."""
    assert len(set(COMMON)) == 16 and not set(COMMON) & set(RARE)
