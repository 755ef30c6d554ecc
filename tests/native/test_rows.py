"""Matrices whose rows lie apart: which are rearranged, and that nothing but their place changes."""

from __future__ import annotations

import pytest
import torch

from antiphon.checkpoint import load_flow, load_model_config, load_whisper
from antiphon.models.flow_dit import FlowDit
from antiphon_kernels.native import available, empty_rows

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.arguments import has_rows
from antiphon_kernels.native.network_pass import chosen


def is_odd(weight: torch.Tensor) -> bool:
    """Whether the rows are an odd number of lines of 64 bytes apart."""
    lines, rest = divmod(weight.stride(0) * weight.element_size(), 64)
    return rest == 0 and lines % 2 == 1


@pytest.mark.parametrize("inputs", [512, 768, 2048, 2304, 9216])
def test_rows_of_many_lines_lie_an_odd_number_apart(inputs, isa):
    matrix = empty_rows((40, inputs), torch.bfloat16, torch.device("cpu"))
    assert matrix.shape == (40, inputs) and has_rows(matrix)
    assert is_odd(matrix) == chosen()


@pytest.mark.parametrize(
    ("inputs", "dtype"),
    [
        (192, torch.bfloat16),  # six lines: stays in the cache
        (544, torch.bfloat16),  # odd already
        (520, torch.bfloat16),  # no whole lines
        (512, torch.float32),  # packed elsewhere
    ],
)
def test_other_matrices_are_contiguous(inputs, dtype, isa):
    assert empty_rows((40, inputs), dtype, torch.device("cpu")).is_contiguous()


def test_other_devices_have_contiguous_matrices():
    assert empty_rows((40, 512), torch.bfloat16, torch.device("meta")).is_contiguous()


def test_rows_are_known_by_their_strides():
    whole = torch.zeros(2, 6, 8)
    assert has_rows(whole) and has_rows(whole[:, :, :4]) and has_rows(whole[:1, :5]) and has_rows(whole[0])
    assert not has_rows(whole[:, :5]), "the second branch does not follow the first"
    assert not has_rows(whole[:, :, ::2]) and not has_rows(whole.transpose(1, 2))
    assert not has_rows(whole[:1, :1].expand(1, 6, 8)), "rows over each other"


def test_loaded_networks_are_spread_and_compute_the_same(shared, isa):
    """The demo's second MLP matrix has 768 inputs, 24 lines."""
    config = load_model_config(shared / "fixtures" / "demo")
    flow, whisper = load_flow(config), load_whisper(config)
    for weight in (flow["blocks.0.mlp.fc2.weight"], whisper["layers.0.fc2.weight"]):
        assert is_odd(weight) == chosen()
    together = {name: weight.contiguous() for name, weight in flow.items()}
    x = torch.randn(20, flow["blocks.0.mlp.fc2.weight"].shape[1]).to(torch.bfloat16)
    for rows in (4, 20):
        a, b = (FlowDit(config.flow, weights)._linear("blocks.0.mlp.fc2", x[:rows]) for weights in (flow, together))
        assert torch.equal(a, b)
