"""A linear map runs the operator of what is stored, in one branch or two."""

from __future__ import annotations

import pytest
import torch

from antiphon.calibration import RecordedLinear
from antiphon_kernels import LinearWeight, count_calls, operators, use_backend
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.linear_weight import dequantize_weight, quantize_weight

SCHEMES = ("int8", "int4", "fp8")


@pytest.fixture(params=[1, 2], ids=["one branch", "two branches"])
def weight(request) -> torch.Tensor:
    torch.manual_seed(request.param)
    return torch.randn(request.param, 24, 256) / 16  # two int4 groups; outputs no multiple of 16


def rows(weight):
    """Five rows and how many of them are the first branch's."""
    return torch.randn(5, 256), 2 if len(weight) == 2 else 5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_runs_the_operator_of_its_scheme(scheme, weight):
    (x, split), bias = rows(weight), torch.randn(weight.shape[:2])
    integers, scale = quantize_weight(weight, scheme)
    map_ = LinearWeight.named({"m": integers, "m.scale": scale, "b": bias}, "m", bias="b")
    assert (map_.scheme, map_.num_inputs, map_.num_outputs) == (scheme, 256, 24)
    with use_backend("reference"), count_calls() as calls:
        got = map_(x, split)
        assert calls[f"linear_{scheme}", "reference"] == 1
    expected = operators()[f"linear_{scheme}"].reference(x, integers, scale, bias, split)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stands_for_the_dequantised_weights(scheme, weight):
    """The same numbers as a plain map over what the integers stand for; fp8 rounds its rows too, to 3 bits."""
    (x, split), pair = rows(weight), quantize_weight(weight, scheme)
    with use_backend("reference"):
        got = LinearWeight(*pair)(x, split)
        expected = LinearWeight(dequantize_weight(*pair, torch.float32))(x, split)
    allowed = 0.1 if scheme == "fp8" else 1e-5
    assert (got - expected).abs().max() < allowed
    error = (dequantize_weight(*pair, torch.float32) - weight).square().mean().sqrt() / weight.square().mean().sqrt()
    assert error < {"int8": 0.01, "int4": 0.11, "fp8": 0.04}[scheme]


def test_a_plain_matrix_is_one_branch():
    weight = torch.randn(24, 256)
    map_ = LinearWeight.named({"m": weight}, "m")
    x = torch.randn(3, 256)
    assert map_.scheme == "plain" and map_.weight.shape == (1, 24, 256)
    with use_backend("reference"):
        assert torch.equal(map_(x, 3), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_gated_is_the_activation_of_the_map(scheme, weight):
    (x, split), pair = rows(weight), quantize_weight(weight, scheme) if scheme else (weight, None)
    map_ = LinearWeight(*pair)
    gate, up = map_(x, split).chunk(2, dim=1)
    torch.testing.assert_close(map_.gated(x, split), torch.nn.functional.silu(gate) * up)


def test_a_compact_pair_runs_its_operator(weight):
    """Two dimensions are one branch of weights, but codes are of the whole matrix and have one dimension."""
    (x, split), weight, bias = rows(weight), weight.bfloat16(), torch.randn(weight.shape[:2]).bfloat16()
    x, (packed, codes) = x.bfloat16(), compact(weight)
    weights = {"m": packed, "m.scale": codes, "b": bias}
    if len(weight) == 1:
        weights["m"] = packed[0]
    map_ = LinearWeight.named(weights, "m", bias="b")
    assert (map_.scheme, map_.num_inputs, map_.num_outputs) == ("compact", 256, 24)
    assert map_.weight.shape == (len(weight), 24, 384) and map_.scale is codes
    with use_backend("reference"), count_calls() as calls:
        got = map_(x, split)
        assert calls["linear_compact", "reference"] == 1
        assert torch.equal(got, LinearWeight(weight, None, bias)(x, split))
        gated = LinearWeight(packed, codes).gated(x, split)
        assert torch.equal(gated, LinearWeight(weight).gated(x, split))
    assert torch.equal(dequantize_weight(packed, codes, torch.float32), weight.float())


def test_recording_a_compact_map(weight):
    """The same results, and the rows that entered it, in the width that they have."""
    (x, split), pair = rows(weight), compact(weight.bfloat16())
    map_ = LinearWeight(*pair)
    recorded = RecordedLinear.over(map_, 0)
    assert torch.equal(recorded(x.bfloat16(), split), map_(x.bfloat16(), split))
    kept = torch.cat([reservoir.rows for reservoir in recorded.reservoirs])
    assert torch.equal(kept, x.bfloat16())


def test_a_scale_beside_floats_is_our_mistake():
    with pytest.raises(TypeError, match="scaled weight"):
        LinearWeight(torch.zeros(1, 2, 2), torch.zeros(1, 2))
