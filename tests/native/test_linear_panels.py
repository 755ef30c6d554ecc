"""Weights in panels: the same weights, the same results bit for bit, by every instruction set that reads them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import antiphon_kernels as ak
from antiphon.models.dense import Dense
from antiphon.planner.op_costs import Lengths, operator_cost
from antiphon_kernels.linear_panels import from_panels, linear_panels, num_inputs, to_panels
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels import _native
from antiphon_kernels.native.linear import wide_linear
from antiphon_kernels.native.linear_panels import native_linear_panels as native
from antiphon_kernels.native.network_pass import addresses, fit_tiles

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SHAPES = [  # rows, outputs, inputs
    (1, 1, 2),  # smallest
    (7, 47, 66),  # one row past a tile, one output short of a panel; no whole vector of inputs
    (12, 48, 192),  # a whole panel, in float32 a whole chunk
    (23, 65, 194),  # a vector of a panel, one output of it; a word into the second chunk
    (60, 97, 770),  # two panels and an output; chunks of both dtypes
    (1100, 33, 64),  # more rows than pass by a panel at a time
]
EXACT = SimpleNamespace(empty=lambda shape, dtype: torch.empty(shape, dtype=dtype))
"""Memory that ends with the panels."""


def build(rows: int, outputs: int, inputs: int, dtype: torch.dtype):
    """x, weight, bias."""
    torch.manual_seed(rows + inputs)
    weight = torch.randn(outputs, inputs) * torch.exp2(torch.randint(-20, 20, (outputs, 1)).float())
    return torch.randn(rows, inputs).to(dtype), weight.to(dtype), torch.randn(outputs).to(dtype)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_come_back_bit_for_bit(shape, dtype, isa, poison, with_threads):
    _, weight, _ = build(*shape, dtype)
    weight[0, 0] = -0.0
    apart = torch.cat((weight, torch.full_like(weight, torch.nan)), dim=1)[:, : shape[2]]
    for threads in (1, 3):
        for rows in (weight, apart):
            panels = with_threads(threads, lambda rows=rows: to_panels(rows, EXACT))
            assert num_inputs(panels) == shape[2] and panels.dtype == dtype
            assert torch.equal(bits(with_threads(threads, lambda p=panels: from_panels(p, shape[1]))), bits(weight))
            assert panels.isfinite().all(), "what fills the last panel up is read"


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_has_the_bits_of_the_plain_weights(shape, dtype, isa, poison, with_threads):
    if isa == "amx":
        pytest.skip("tiles read rows")
    x, weight, bias = build(*shape, dtype)
    panels, expected = to_panels(weight, EXACT), wide_linear(x, weight[None], bias[None], len(x))
    apart = torch.cat((x, torch.full_like(x, torch.nan)), dim=1)[:, : shape[2]]
    for threads in (1, 2, 3):
        for rows in (x, apart):
            assert torch.equal(with_threads(threads, lambda rows=rows: native(rows, panels, bias)), expected)
    assert native(x[:0], panels, bias).shape == (0, shape[1])


@DTYPES
def test_the_reference_multiplies_with_the_plain_weights(dtype, isa):
    x, weight, bias = build(7, 47, 66, dtype)
    panels = to_panels(weight, EXACT)
    expected = ak.linear.reference(x, weight[None], bias[None], 7)
    assert torch.equal(linear_panels.reference(x, panels, bias), expected)
    with ak.use_backend("reference"):
        assert torch.equal(Dense(panels, bias)(x), expected)
    with ak.count_calls() as calls:
        got = Dense(panels, bias)(x[None])
    assert calls["linear_panels", "reference" if isa == "amx" else "native"] == 1 and got.shape == (1, 7, 47)


def test_what_stays_plain(isa):
    for weight in (torch.randn(4, 7), torch.randn(4, 8).half(), torch.randn(0, 8)):
        assert to_panels(weight) is None
    with ak.use_backend("reference"):
        assert to_panels(torch.randn(4, 8)) is None


@DTYPES
def test_panels_of_another_instruction_set_are_not_read(dtype, isa):
    x, weight, bias = build(7, 47, 96, dtype)
    panels = to_panels(weight)
    assert linear_panels.supports("native", x, panels, bias) == fit_tiles([Dense(panels, bias)] * 2, True) == (isa != "amx")
    assert not linear_panels.supports("native", x, panels, bias.double())
    assert not linear_panels.supports("native", x, panels[..., :-1], bias)
    other = torch.zeros(1, panels.shape[1], 3 * panels.shape[2], dtype=dtype)
    assert not linear_panels.supports("native", x, other, bias) and not fit_tiles([Dense(other, bias)] * 2, True)


@DTYPES
def test_what_a_pass_is_told(dtype, isa):
    _, weight, bias = build(7, 47, 66, dtype)
    panels = to_panels(weight)
    assert addresses(Dense(panels, bias)) == [panels.data_ptr(), 0, 0, 0, bias.data_ptr(), 47, 66]
    assert panels.shape == (-(-47 // _native.panel_outputs()), 66 + 2 * (dtype == torch.float32), _native.panel_outputs())


@DTYPES
def test_costs_what_the_plain_map_costs(dtype):
    x, weight, bias = build(7, 48, 192, dtype)
    panels = to_panels(weight)
    cost = operator_cost("linear_panels", (x, panels, bias), x.new_empty(7, 48), Lengths())
    sizes = sum(t.nbytes for t in (x, panels, bias)) + 7 * 48 * x.itemsize
    assert (cost.num_bytes, cost.flops) == (sizes, 2 * 7 * 48 * 192)
