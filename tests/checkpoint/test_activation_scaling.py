"""Activation-aware scales: the map stays the same, the rounding error gets smaller where inputs are uneven."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from antiphon.checkpoint.activation_scaling import choose_scales, fold_norm
from antiphon.checkpoint.quantize import quantize_tensor
from antiphon_kernels.linear_weight import dequantize_weight

CONFIG = SimpleNamespace(num_heads=4, num_kv_heads=2, head_dim=64, hidden_size=256)
HIDDEN, INNER, QKV = 256, 128, 512


@pytest.fixture(scope="module")
def layer():
    """A paired layer in bfloat16 with norm weights around one."""
    torch.manual_seed(1)
    shapes = {
        "input_norm": (HIDDEN,),
        "qkv_weight": (QKV, HIDDEN),
        "qkv_bias": (QKV,),
        "o_weight": (HIDDEN, HIDDEN),
        "post_norm": (HIDDEN,),
        "gate_up": (2 * INNER, HIDDEN),
        "down": (HIDDEN, INNER),
    }
    tensors = {name: torch.randn(2, *shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    tensors["input_norm"] = 1 + 0.3 * torch.randn(2, HIDDEN)
    tensors["post_norm"] = 1 + 0.3 * torch.randn(2, HIDDEN)
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def inputs():
    """Rows of which one channel in 128 is thirty times as loud; the audio branch has none."""

    def uneven(width):
        rows = torch.randn(64, width)
        rows[:, ::128] *= 30
        return [rows.bfloat16(), torch.empty(0, width)]

    return {"qkv_weight": uneven(HIDDEN), "o_weight": uneven(HIDDEN), "gate_up": uneven(HIDDEN), "down": uneven(INNER)}


def test_folded_norm_times_columns_is_the_norm():
    norm, scale = (1 + 0.3 * torch.randn(2, 64)).bfloat16(), torch.rand(2, 64) * 4 + 0.1
    norm[0, 3] = 0
    folded, columns = fold_norm(norm, scale)
    assert folded.dtype == torch.bfloat16 and torch.allclose(folded.float() * columns, norm.float(), rtol=1e-6)
    assert columns[0, 3] == 1 and folded[0, 3] == 0


def test_the_layer_stays_the_same_map(layer, inputs):
    """What divides an input multiplies the columns that meet it: norms, values → o, up → down."""
    scales = choose_scales(layer, inputs, "int4", CONFIG)
    for norm, matrix in (("input_norm", "qkv_weight"), ("post_norm", "gate_up")):
        torch.testing.assert_close(scales.others[norm].float() * scales.columns[matrix], layer[norm].float())
    values = scales.rows["qkv_weight"][:, -2 * 64 :].view(2, 2, 1, 64).expand(2, 2, 2, 64).reshape(2, -1)
    torch.testing.assert_close(values * scales.columns["o_weight"], torch.ones(2, HIDDEN))
    torch.testing.assert_close(scales.rows["gate_up"][:, INNER:] * scales.columns["down"], torch.ones(2, INNER))
    bias = layer["qkv_bias"].float() * scales.rows["qkv_weight"]
    assert torch.equal(scales.others["qkv_bias"], bias.bfloat16())
    assert (scales.rows["gate_up"][:, :INNER] == 1).all() and (scales.rows["qkv_weight"][:, : -2 * 64] == 1).all()


def test_a_branch_without_rows_is_left_alone(layer, inputs):
    scales = choose_scales(layer, inputs, "int4", CONFIG)
    assert torch.equal(scales.others["input_norm"][1], layer["input_norm"][1])
    assert all((factors[1] == 1).all() for factors in (*scales.rows.values(), *scales.columns.values()))


@pytest.mark.parametrize("name", ["qkv_weight", "gate_up", "down"])
def test_loud_channels_are_rounded_less(layer, inputs, name):
    """Error of the int4 map's results on the recorded rows, beside rounding to nearest."""
    scales, x = choose_scales(layer, inputs, "int4", CONFIG), inputs[name][0].float()
    wanted = x @ layer[name][0].float().T

    def error(factors):
        (_, integers), (_, scale) = quantize_tensor(name, layer[name], "int4", factors)
        weight = dequantize_weight(integers, scale, torch.float32)[0]
        rows, columns = (1, 1) if factors is None else (factors.rows[0], factors.columns[0])
        return ((x / columns) @ weight.T / rows - wanted).norm() / wanted.norm()

    plain, aware = error(None), error(scales.of(name))
    print(f"{name}: rounded to nearest {plain:.4f}, aware {aware:.4f}")
    assert aware < 0.75 * plain
