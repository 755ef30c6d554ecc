"""float32 linear in 24-bit fixed point: the same bits on every instruction set, as exact as float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from antiphon_kernels import linear_fixed, pack_fixed, use_backend
from antiphon_kernels.linear_fixed import LARGEST, digits, pack_reference, reference, row_scales, unpack_digits
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.linear_fixed import native_linear_fixed as native
from antiphon_kernels.native.linear_fixed import pack_native

SHAPES = [  # rows, outputs, inputs
    (1, 1, 1),  # smallest
    (17, 33, 65),  # one above a tile each way
    (32, 32, 64),  # whole tiles: two blocks of rows, one depth
    (133, 70, 65),  # rows in two groups
    (133, 33, 2113),  # an odd number of blocks; one input into the second chunk of depths
]


def build(rows: int, outputs: int, inputs: int):
    """x with rows of very different size, weights, bias."""
    torch.manual_seed(rows + outputs)
    x = torch.randn(rows, inputs) * torch.exp2(torch.randint(-30, 30, (rows, 1)).float())
    return x, torch.randn(outputs, inputs), torch.randn(outputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_has_the_bits_of_the_reference(shape, isa, poison, with_threads):
    x, weight, bias = build(*shape)
    packed, expected = pack_native(weight), pack_reference(weight)
    assert torch.equal(packed.tiles, expected.tiles) and torch.equal(packed.scales, expected.scales)
    for some_bias in (bias, None):
        exact = reference(x, *expected, some_bias)
        for threads in (1, 2, 3):
            assert torch.equal(with_threads(threads, lambda b=some_bias: native(x, *packed, b)), exact)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_as_near_to_the_product_as_float32(shape, isa):
    """Worst error over the norms of the two rows: at most 2^-21, whatever the row's size."""
    x, weight, _ = build(*shape)
    exact = x.double() @ weight.double().T
    size = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    error = ((native(x, *pack_native(weight), None) - exact).abs() / size).max().item()
    print(
        f"linear_fixed {shape} {isa}: error {error:.1e}, float32 {((F.linear(x, weight) - exact).abs() / size).max():.1e}"
    )
    assert error <= 2.0**-21


def test_typical_error_is_that_of_float32():
    """Root mean square over 2304 normal inputs; PyTorch's own is 3.5e-7 of the output's deviation."""
    torch.manual_seed(0)
    x, weight = torch.randn(20, 2304), torch.randn(64, 2304)
    exact = x.double() @ weight.double().T
    assert ((native(x, *pack_native(weight), None) - exact).std() / exact.std()).item() <= 5e-7


def test_a_row_is_the_same_among_any_number(isa):
    x, weight, bias = build(49, 70, 130)
    packed = pack_native(weight)
    every = native(x, *packed, bias)
    for rows in (1, 15, 16, 17, 33):
        assert torch.equal(native(x[:rows], *packed, bias), every[:rows])
        assert torch.equal(native(x[-rows:], *packed, bias), every[-rows:])


def test_strided_rows_and_no_rows(isa):
    x, weight, bias = build(17, 33, 65)
    packed = pack_native(weight)
    expected = native(x, *packed, bias)
    rows_apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, :65]
    columns_apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    for other in (rows_apart, columns_apart):
        assert torch.equal(native(other, *packed, bias), expected)
    assert native(x[:0], *packed, bias).shape == (0, 33)


def test_what_is_no_number_stays_in_its_row(isa):
    x, weight, bias = build(20, 33, 64)
    expected = native(x, *pack_native(weight), bias)
    x[3, 5], x[7, 0], weight[9, 1] = torch.inf, torch.nan, -torch.inf
    out = native(x, *pack_native(weight), bias)
    assert torch.equal(out.isnan(), reference(x, *pack_reference(weight), bias).isnan())
    rows, columns = [t not in (3, 7) for t in range(20)], [n != 9 for n in range(33)]
    assert out[[3, 7]].isnan().all() and out[:, 9].isnan().all()
    assert torch.equal(out[rows][:, columns], expected[rows][:, columns])


def test_zero_and_tiny_rows(isa):
    x, weight, bias = build(5, 33, 64)
    x[1], x[2] = 0.0, 1e-38
    out = native(x, *pack_native(weight), bias)
    assert torch.equal(out[1], bias) and torch.equal(out[2], bias)


def test_very_large_and_very_small_rows_meet(isa):
    """No factor leaves float32's range before the result does."""
    x, weight, _ = build(17, 33, 65)
    expected = native(x, *pack_native(weight), None)
    for power in (90, -60):
        packed = pack_native(weight * 2.0**-power)
        assert torch.equal(native(x * 2.0**power, *packed, None), expected)


def test_digits_hold_every_value():
    x = torch.tensor([[1.0, -1.0, 0.5, 1e-9, 127.0, -127.0], [0.0] * 6])
    scales = row_scales(x)
    high, middle, low = digits(x, scales).long()
    value = (high << 16) + (middle << 8) + low
    assert value[0, 4] == LARGEST and value[0, 5] == -LARGEST and not value[1].any()
    assert (value[0] / scales[0].double() - x[0].double()).abs().max() <= 0.75 / scales[0]


def test_packing_is_undone():
    weight = torch.randn(37, 70)
    packed = pack_native(weight)
    assert torch.equal(unpack_digits(packed.tiles, 37, 70), digits(weight, row_scales(weight)))


def test_packing_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match=r"expected float32 \[out, in\].*bfloat16"):
        pack_fixed(torch.zeros(2, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="at most 32768"):
        pack_fixed(torch.zeros(1, 32769))


def test_the_reference_backend_packs_and_multiplies_too():
    x, weight, bias = build(17, 33, 65)
    with use_backend("reference"):
        out = linear_fixed(x, *pack_fixed(weight), bias)
    assert torch.equal(out, native(x, *pack_native(weight), bias))
