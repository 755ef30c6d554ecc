"""Native 1-D convolution on every instruction set."""

from __future__ import annotations

import pytest
import torch

import antiphon_kernels as ak
from antiphon_kernels.conv1d import conv1d, reference
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.conv1d import run

SHAPES = [  # batch, channels, out channels, length, taps, dilation
    (1, 1, 1, 1, 3, 1),  # smallest; all but one tap outside
    (2, 5, 7, 33, 3, 5),  # a ragged everything; two items
    (1, 80, 40, 20, 7, 1),  # conv_pre's input channels; shorter than a tile
    (1, 33, 65, 100, 11, 5),  # one channel above a tile each way; the widest reach
    (1, 64, 32, 32, 1, 1),  # whole tiles, one tap
]


def build(shape, dtype):
    batch, channels, out_channels, length, taps, dilation = shape
    torch.manual_seed(length)
    weight = torch.randn(out_channels, channels, taps) / (channels * taps) ** 0.5
    x, residual = torch.randn(batch, channels, length), torch.randn(batch, out_channels, length)
    return x.to(dtype), weight.to(dtype), torch.randn(out_channels).to(dtype), residual.to(dtype), dilation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extras", [True, False])
def test_agrees_with_reference(shape, dtype, extras, isa, poison):
    x, weight, bias, residual, dilation = build(shape, dtype)
    bias, residual = (bias, residual) if extras else (None, None)
    exact = reference(*(None if t is None else t.double() for t in (x, weight, bias, residual)), dilation)
    own = (reference(x, weight, bias, residual, dilation) - exact).abs().max()
    split = 1e-5 if isa == "amx" else 1e-6  # two bfloat16 parts hold 16 bits of a float32
    bound = 2 * own + (split if dtype == torch.float32 else torch.finfo(dtype).eps) * exact.abs().max()
    used = ((run(x, weight, bias, residual, dilation) - exact).abs().max() / bound).item()
    print(f"conv1d {shape} {dtype} {isa}: {100 * used:.0f} % of the error budget")
    assert used <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_threads_batch_and_strides_change_no_bit(shape, dtype, isa, with_threads):
    args = build(shape, dtype)
    x, weight, bias, residual, dilation = args
    one = with_threads(1, lambda: run(*args))
    for count in (2, 3):
        assert torch.equal(one, with_threads(count, lambda: run(*args)))
    assert torch.equal(one[-1:], run(x[-1:], weight, bias, residual[-1:], dilation))
    apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    assert torch.equal(one, run(apart, weight, bias, residual, dilation))


def test_operator_takes_the_kernel_or_pytorch(isa):
    for out_channels in (8, 40):
        args = build((1, 20, out_channels, 50, 3, 1), torch.float32)
        with ak.use_backend("native"):
            torch.testing.assert_close(conv1d(*args), reference(*args), atol=1e-4, rtol=1e-4)
