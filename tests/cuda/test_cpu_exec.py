"""csrc/cuda kernels on the CPU against the PyTorch references: numbers, edges, races."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.alias_free_snake import reference as alias_free_snake
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int4 import reference as linear_int4
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.linear_int8 import reference as linear_int8

FLOOR = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TILE = 1024


def within_twice_pytorch(name: str, got: torch.Tensor, own: torch.Tensor, truth: torch.Tensor) -> None:
    """Error at most twice PyTorch's plus a rounding floor; prints the share."""
    error, allowed = ((o.double() - truth).abs().max().item() for o in (got, own))
    budget = 2 * allowed + FLOOR[got.dtype] * truth.abs().max().item()
    print(f"{name}: error {error:.2e}, {error / budget:.0%} of the budget")
    assert got.isfinite().all() and error <= budget


def dtype_name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def snake_case(length: int, dtype: torch.dtype, channels: int = 2, batch: int = 1):
    torch.manual_seed(length)
    x = 2 * torch.randn(batch, channels, length).to(dtype)
    alpha = torch.tensor([0.3, 25.0])[:channels]
    return x, alpha, alpha + 0.5, *(torch.rand(2, 12) / 4)


@pytest.fixture(scope="session")
def unsynchronised(build_kernels):
    """The build whose barriers do nothing."""
    return build_kernels("-fsanitize=thread", "-DCPU_EXEC_WITHOUT_SYNC")


def run_snake(run, program, args, offset=0):
    batch, channels, length = args[0].shape
    sizes = [batch * channels, channels, length, offset]
    return run(program, ["alias_free_snake", dtype_name(args[0]), *sizes], args, args[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, 3, 6, TILE - 1, TILE, TILE + 1, TILE + 8, 2 * TILE + 16])
def test_alias_free_snake(run, kernels, length, dtype):
    args = snake_case(length, dtype)
    got = run_snake(run, kernels, args)
    own, truth = alias_free_snake(*args), alias_free_snake(*(a.double() for a in args))
    within_twice_pytorch("all samples", got, own, truth)
    for ends in (slice(0, 3), slice(-3, None)):
        within_twice_pytorch("ends", got[..., ends], own[..., ends], truth[..., ends])


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_alias_free_snake_off_the_16_byte_boundary(run, kernels, offset):
    """The same bits as on it."""
    args = snake_case(TILE + 24, torch.bfloat16, batch=2)
    assert torch.equal(run_snake(run, kernels, args, offset), run_snake(run, kernels, args))


def test_alias_free_snake_of_huge_angles(run, kernels):
    """alpha * x in the millions: only the float64 reduction is right there."""
    x, _, inv_beta, up, down = snake_case(64, torch.float32)
    args = (x, torch.tensor([3e5, 4e6]), inv_beta, up, down)
    got, own = run_snake(run, kernels, args), alias_free_snake(*args)
    angle = 2 * x.abs().max() * args[1].max()
    assert angle > 1e6 and (got - own).abs().max() < 2 * inv_beta.max()
    assert got.isfinite().all()


LINEARS = {"linear_int8": (quantize_int8, linear_int8), "linear_int4": (quantize_int4, linear_int4)}


def linear_case(quantize, rows, split, inputs, outputs, dtype, with_bias=True):
    torch.manual_seed(rows)
    branches = 1 if split == rows else 2
    packed, scale = quantize(torch.randn(branches, outputs, inputs) / inputs**0.5)
    bias = torch.randn(branches, outputs).to(dtype) if with_bias else None
    return torch.randn(rows, inputs).to(dtype), packed, scale, bias, split


def run_linear(run, program, name, args, most):
    x, packed, _, bias, split = args
    sizes = [packed.shape[0], x.shape[0], split, x.shape[1], packed.shape[1], int(bias is not None)]
    like = x.new_empty(x.shape[0], packed.shape[1])
    return run(program, [name, dtype_name(x), most, *sizes], args[:4], like)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("rows", "split", "most", "inputs", "outputs", "with_bias"),
    [(1, 1, 1, 128, 1, False), (1, 1, 1, 1152, 5, True), (5, 3, 4, 640, 7, True), (8, 8, 8, 128, 9, False), (8, 0, 8, 384, 4, True)],
)
@pytest.mark.parametrize("name", LINEARS)
def test_skinny_linear(run, kernels, name, rows, split, most, inputs, outputs, with_bias, dtype):
    quantize, reference = LINEARS[name]
    args = linear_case(quantize, rows, split, inputs, outputs, dtype, with_bias)
    wide = [a.double() if a is not None and not isinstance(a, int) and a.is_floating_point() else a for a in args]
    within_twice_pytorch(name, run_linear(run, kernels, name, args, most), reference(*args), reference(*wide))


@pytest.mark.parametrize("name", LINEARS)
def test_row_does_not_depend_on_the_rows_beside_it(run, kernels, name):
    x, packed, scale, bias, _ = linear_case(LINEARS[name][0], 8, 8, 640, 6, torch.bfloat16)
    together = run_linear(run, kernels, name, (x, packed, scale, bias, 8), 8)
    for most, rows in ((1, slice(5, 6)), (4, slice(2, 6))):
        n = rows.stop - rows.start
        assert torch.equal(run_linear(run, kernels, name, (x[rows], packed, scale, bias, n), most), together[rows])


def test_a_missing_barrier_would_be_seen(run, unsynchronised):
    """Without __syncthreads the same run is full of races."""
    with pytest.raises(AssertionError, match="data race"):
        run_snake(run, unsynchronised, snake_case(40, torch.bfloat16, channels=1))


def test_no_races(run, kernels_tsan):
    """ThreadSanitizer sees every access to shared memory; two tiles so that blocks follow one another."""
    args = snake_case(TILE + 24, torch.bfloat16, channels=1)
    assert run_snake(run, kernels_tsan, args).isfinite().all()
    for name, (quantize, _) in LINEARS.items():
        linear = linear_case(quantize, 5, 3, 256, 6, torch.bfloat16)
        assert run_linear(run, kernels_tsan, name, linear, 4).isfinite().all()
