"""The launchers of csrc/cuda, with the launch itself caught and run on the CPU: arguments, grids, entry points, refusals."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import cuda_support
from antiphon_kernels.alias_free_snake import alias_free_snake_cuda
from antiphon_kernels.alias_free_snake import reference as alias_free_snake
from antiphon_kernels.linear_int4 import linear_int4_cuda
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int4 import reference as linear_int4
from antiphon_kernels.linear_int8 import linear_int8_cuda
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.linear_int8 import reference as linear_int8


@pytest.fixture
def on_cpu(monkeypatch, run, kernels):
    """``cuda_support.launch`` runs the kernel through cpu_exec.h; yields the list of (entry, blocks, threads)."""
    seen = []

    def launch(source, entry, blocks, threads, *args):
        assert f"({entry}," in cuda_support.expand(source)
        seen.append((entry, blocks, threads))
        dtype = entry.split("_")[-1 if source == "alias_free_snake" else -2]
        if source == "alias_free_snake":
            *tensors, out, channels, length = args
            sizes = [out.numel() // length, channels, length, 0]
        else:
            x, weight, scale, bias, out, _, rows, split, inputs, outputs = args
            tensors = (x, weight, scale, bias)
            sizes = [entry.split("_")[-1], weight.shape[0], rows, split, inputs, outputs, int(bias is not None)]
        out.copy_(run(kernels, [source, dtype, *sizes], tensors, out))

    monkeypatch.setattr(cuda_support, "launch", launch)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_alias_free_snake(on_cpu, dtype):
    torch.manual_seed(0)
    args = (torch.randn(2, 3, 1100).to(dtype), torch.rand(3), torch.rand(3), *torch.rand(2, 12))
    got, expected = alias_free_snake_cuda(*args), alias_free_snake(*args)
    assert torch.allclose(got.float(), expected.float(), rtol=0, atol=4 * torch.finfo(dtype).eps * expected.float().abs().max().item())
    assert on_cpu == [(f"alias_free_snake_{str(dtype)[6:]}", 12, 128)]


@pytest.mark.parametrize(
    ("launcher", "quantize", "reference"),
    [(linear_int8_cuda, quantize_int8, linear_int8), (linear_int4_cuda, quantize_int4, linear_int4)],
    ids=["int8", "int4"],
)
def test_skinny_linears(on_cpu, launcher, quantize, reference):
    torch.manual_seed(0)
    packed, scale = quantize(torch.randn(2, 6, 256) / 16)
    x, bias = torch.randn(5, 256).bfloat16(), torch.randn(2, 6).bfloat16()
    got, expected = launcher(x, packed, scale, bias, 2), reference(x, packed, scale, bias, 2)
    assert torch.allclose(got.float(), expected.float(), rtol=0, atol=0.03)
    ((entry, blocks, threads),) = on_cpu
    assert entry.endswith("bfloat16_4") and (blocks, threads) == (4, 128)
    with pytest.raises(ValueError, match="at most 8 rows"):
        launcher(torch.randn(9, 256).bfloat16(), packed[:1], scale[:1], None, 9)


def test_arguments_have_the_widths_of_the_parameters():
    values = [cuda_support.packed_argument(v) for v in (torch.zeros(1), None, 7, cuda_support.Int64(7))]
    assert values[0] > 0 and values[1] == 0
    assert (values[2].nbytes, values[3].nbytes) == (4, 8)
