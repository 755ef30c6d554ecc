"""Native 1-D convolution on every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import antiphon_kernels as ak
from antiphon_kernels.conv1d import conv1d, reference
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.conv1d import PackedConv
from antiphon_kernels.native.conv1d import native_conv1d as run
from antiphon_kernels.native.vocoder import packed_bytes

SHAPES = [  # batch, channels, out channels, length, taps, dilation
    (1, 1, 1, 1, 3, 1),  # smallest; all but one tap outside
    (2, 5, 7, 33, 3, 5),  # a ragged everything; two items
    (1, 80, 40, 20, 7, 1),  # conv_pre's input channels; shorter than a tile
    (1, 33, 65, 100, 11, 5),  # one channel above a tile each way; the widest reach
    (1, 64, 32, 32, 1, 1),  # whole tiles, one tap
    (1, 96, 16, 641, 11, 3),  # several chunks of weights; one time above a span
    (2, 16, 1, 257, 7, 1),  # the most channels that pass in vectors of times, as conv_post's; one time above a span of them
    (1, 12, 6, 600, 5, 3),  # three spans of them; whole and half groups of output channels
    (1, 17, 18, 6, 5, 1),  # the fewest channels of Winograd's tiles; two whole tiles
    (2, 17, 33, 7, 9, 5),  # fewer times than a tile reaches, the last group with one tap; two items
    (1, 32, 48, 961, 3, 1),  # tiles of one tap group; one time above a span of them
    (1, 48, 64, 50, 7, 3),  # the last group lacks a tap
]

TRANSPOSED = [  # batch, channels, out channels, length, taps, stride
    (1, 1, 1, 1, 4, 2),  # smallest
    (2, 40, 20, 17, 9, 5),  # phases of one and of two taps; two items
    (1, 33, 65, 100, 5, 3),
    (1, 64, 32, 641, 4, 2),  # one time above a span
    (1, 5, 7, 9, 3, 3),  # as many taps as phases
]


def build(shape, dtype):
    batch, channels, out_channels, length, taps, dilation = shape
    torch.manual_seed(length)
    weight = torch.randn(out_channels, channels, taps) / (channels * taps) ** 0.5
    x, residual = torch.randn(batch, channels, length), torch.randn(batch, out_channels, length)
    return x.to(dtype), weight.to(dtype), torch.randn(out_channels).to(dtype), residual.to(dtype), dilation


def rounding(isa: str, dtype: torch.dtype) -> float:
    """Of the largest output: two bfloat16 parts hold 16 bits of a float32."""
    if dtype == torch.bfloat16:
        return torch.finfo(dtype).eps
    return 1e-5 if isa == "amx" else 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extras", [True, False])
def test_agrees_with_reference(shape, dtype, extras, isa, poison):
    x, weight, bias, residual, dilation = build(shape, dtype)
    bias, residual = (bias, residual) if extras else (None, None)
    exact = reference(*(None if t is None else t.double() for t in (x, weight, bias, residual)), dilation)
    own = (reference(x, weight, bias, residual, dilation) - exact).abs().max()
    bound = 2 * own + rounding(isa, dtype) * exact.abs().max()
    used = ((run(x, weight, bias, residual, dilation) - exact).abs().max() / bound).item()
    print(f"conv1d {shape} {dtype} {isa}: {100 * used:.0f} % of the error budget")
    assert used <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_threads_batch_and_strides_change_no_bit(shape, dtype, isa, with_threads):
    args = build(shape, dtype)
    x, weight, bias, residual, dilation = args
    one = with_threads(1, lambda: run(*args))
    for count in (2, 3):
        assert torch.equal(one, with_threads(count, lambda: run(*args)))
    assert torch.equal(one[-1:], run(x[-1:], weight, bias, residual[-1:], dilation))
    apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    assert torch.equal(one, run(apart, weight, bias, residual, dilation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", TRANSPOSED, ids=str)
def test_transposed_agrees_with_pytorch(shape, dtype, isa, poison, with_threads):
    batch, channels, out_channels, length, taps, stride = shape
    torch.manual_seed(length)
    x = torch.randn(batch, channels, length).to(dtype)
    weight = (torch.randn(channels, out_channels, taps) / (channels * taps / stride) ** 0.5).to(dtype)
    bias, place = torch.randn(out_channels).to(dtype), {"stride": stride, "padding": (taps - stride) // 2}
    exact = F.conv_transpose1d(x.double(), weight.double(), bias.double(), **place)
    own = (F.conv_transpose1d(x, weight, bias, **place) - exact).abs().max()
    bound = 2 * own + rounding(isa, dtype) * exact.abs().max()
    conv = PackedConv(weight, bias, **place)
    one = with_threads(1, lambda: conv(x))
    used = ((one - exact).abs().max() / bound).item()
    print(f"conv_transpose1d {shape} {dtype} {isa}: {100 * used:.0f} % of the error budget")
    assert used <= 1
    for count in (2, 3):
        assert torch.equal(one, with_threads(count, lambda: conv(x)))
    apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    assert torch.equal(one[-1:], conv(apart[-1:]))


def test_transposed_refuses_another_length():
    with pytest.raises(ValueError, match="padding"):
        PackedConv(torch.randn(4, 4, 5), None, stride=2, padding=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [3, 5, 7, 11])
def test_packed_weights_take_what_the_memory_plan_reckons(taps, dtype, isa):
    weight = torch.randn(64, 64, taps).to(dtype)
    assert weight.nbytes <= PackedConv(weight, None).native.bytes <= packed_bytes(weight.nbytes, dtype)


def test_operator_runs_the_kernel(isa):
    args = build((1, 20, 8, 50, 3, 1), torch.float32)
    with ak.use_backend("native"), ak.count_calls() as calls:
        torch.testing.assert_close(conv1d(*args), reference(*args), atol=1e-4, rtol=1e-4)
    assert calls["conv1d", "native"] == 1
