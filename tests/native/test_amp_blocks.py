"""A vocoder stage's residual blocks in one native call, on every instruction set, against the operators one by one."""

from __future__ import annotations

import pytest
import torch

import antiphon_kernels as ak
from antiphon_kernels import alias_free_snake, conv1d
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.native.conv1d import AmpBlocks

KINDS = ((3, (1, 3)), (11, (1, 5)))  # kernel, dilations of each block: the narrowest and the widest reach
SHAPES = [  # batch, channels, length
    (1, 1, 1),  # smallest
    (2, 5, 31),  # less than a vector of channels; two items
    (1, 33, 127),  # one channel above a row of AMX; one time below a span of the activation
    (1, 16, 129),  # half a row of AMX, or the most channels in vectors of times; one time above
    (2, 12, 300),  # vectors of times; more than a span of them
    (1, 48, 641),  # one time above a span of the convolution
]


def build(channels: int, dtype: torch.dtype):
    torch.manual_seed(channels)
    convs, activations = [], []
    for kernel, dilations in KINDS:
        for dilation in dilations:
            for d in (dilation, 1):
                weight = torch.randn(channels, channels, kernel) / (channels * kernel) ** 0.5
                convs.append((weight.to(dtype), torch.randn(channels).to(dtype), d))
                curve = 3 * torch.rand(channels), torch.rand(channels)
                activations.append((*curve, torch.randn(12) / 3, torch.randn(12) / 3))
    return convs, activations


def reference(x, convs, activations):
    """Operators of ``x``'s dtype, the mean last."""
    total, per_block = 0, len(convs) // len(KINDS)
    for block in range(len(KINDS)):
        y = x
        for i in range(block * per_block, (block + 1) * per_block, 2):
            z = y
            for (weight, bias, dilation), curve in zip(convs[i : i + 2], activations[i : i + 2], strict=True):
                z = alias_free_snake(z, *(p.to(x.dtype) if x.dtype == torch.float64 else p for p in curve))
                z = conv1d(z, weight.to(x.dtype), bias.to(x.dtype), None, dilation)
            y = y + z
        total = total + y
    return total / len(KINDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_operators(shape, dtype, isa, poison, with_threads):
    batch, channels, length = shape
    convs, activations = build(channels, dtype)
    check(torch.randn(batch, channels, length).to(dtype), convs, activations, isa, with_threads)


def test_arguments_beyond_the_fast_reduction(isa, poison, with_threads):
    """Filters that pass samples on and factors whose products are exact, so that float32 knows the sine's argument."""
    convs, activations = build(20, torch.float32)
    through = torch.zeros(12).index_fill(0, torch.tensor([5, 6]), 0.5)
    steep = torch.full((20,), 1e7), torch.rand(20), through, torch.randn(12) / 3
    firsts = [0, len(convs) // len(KINDS)]
    activations = [steep if i in firsts else usual for i, usual in enumerate(activations)]
    x = torch.randint(-3, 4, (1, 20, 150)).float()
    check(x, convs, activations, isa, with_threads)


def check(x, convs, activations, isa, with_threads):
    """Within the error budget, whatever the number of threads."""
    blocks = AmpBlocks(len(KINDS), convs, activations)
    with ak.use_backend("reference"):
        exact, own = reference(x.double(), convs, activations), reference(x, convs, activations)
    eps = torch.finfo(x.dtype).eps if x.dtype == torch.bfloat16 else 3e-5 if isa == "amx" else 1e-6
    bound = 2 * (own - exact).abs().max() + eps * exact.abs().max()
    one = with_threads(1, lambda: blocks(x))
    used = ((one - exact).abs().max() / bound).item()
    print(f"amp_blocks {tuple(x.shape)} {x.dtype} {isa}: {100 * used:.0f} % of the error budget")
    assert used <= 1
    for count in (2, 3):
        assert torch.equal(one, with_threads(count, lambda: blocks(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_and_strides_change_no_bit(dtype, isa):
    convs, activations = build(20, dtype)
    blocks, x = AmpBlocks(len(KINDS), convs, activations), torch.randn(3, 20, 50).to(dtype)
    together = blocks(x)
    apart = torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]
    for i in range(3):
        assert torch.equal(together[i], blocks(apart[i : i + 1])[0])
    with ak.count_calls() as calls:
        blocks(x)
    assert calls["amp_blocks", "native"] == 1


def test_a_short_call_after_a_long_one_sees_no_leftovers(isa):
    convs, activations = build(20, torch.float32)
    blocks, x = AmpBlocks(len(KINDS), convs, activations), torch.randn(1, 20, 40)
    fresh = blocks(x)
    blocks(torch.full((1, 20, 700), 1e3))
    assert torch.equal(fresh, blocks(x))
