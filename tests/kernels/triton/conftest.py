"""What every numeric test of a kernel uses: guarded inputs, poisoned outputs, and an error budget from PyTorch's own error.

A kernel may be wrong by at most twice PyTorch's own error in that dtype plus a rounding floor; both are measured against
the reference in float64. The share of the budget that was used is printed. These tests need Triton, imported with
TRITON_INTERPRET=1 (tests/conftest.py sets it where there is no GPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode

from antiphon_kernels import triton_interpreter, triton_support

triton_interpreter.install()

GUARD = 64
"""Elements before and behind every guarded tensor."""
FLOOR = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Rounding floor relative to the largest true value: about one unit in the last place of the result."""
_ALLOCATORS = {torch.empty, torch.empty_like, torch.Tensor.new_empty, torch.empty_strided}


def poison_value(dtype: torch.dtype) -> float | int | bool:
    """A value that no kernel computes: NaN, or the smallest int."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).min if dtype != torch.uint8 else 0xA5


def guarded(x: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of ``x`` between two poisoned bands, so that a read outside of it shows in the result."""
    flat = torch.full((x.numel() + 2 * GUARD,), poison_value(x.dtype), dtype=x.dtype)
    inner = flat[GUARD : GUARD + x.numel()].view(x.shape)
    inner.copy_(x)
    return inner


class PoisonedAllocations(TorchFunctionMode):
    """Inside, every uninitialised tensor is full of poison and lies between poisoned bands; leaving checks the bands."""

    def __init__(self):
        super().__init__()
        self.blocks: list[tuple[torch.Tensor, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return self._guard(out) if func in _ALLOCATORS else out

    def _guard(self, out: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            flat = torch.full((out.numel() + 2 * GUARD,), poison_value(out.dtype), dtype=out.dtype)
            self.blocks.append((flat, out.numel()))
            return flat[GUARD : GUARD + out.numel()].view(out.shape)

    def check(self) -> None:
        """Every band still holds its poison."""
        for flat, size in self.blocks:
            assert_poisoned(flat[:GUARD])
            assert_poisoned(flat[GUARD + size :])


def assert_poisoned(band: torch.Tensor) -> None:
    """The band was not written."""
    untouched = band.isnan() if band.dtype.is_floating_point else band == poison_value(band.dtype)
    assert untouched.all(), "a kernel wrote outside its output"


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Poison allocations in the block and check their bands at its end."""
    mode = PoisonedAllocations()
    with mode:
        yield
    mode.check()


def widen(args: Sequence) -> list:
    """Arguments with every floating tensor in float64."""
    return [a.double() if isinstance(a, torch.Tensor) and a.dtype.is_floating_point else a for a in args]


def as_tuple(out) -> tuple[torch.Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def check_budget(name: str, got: torch.Tensor, torch_out: torch.Tensor, truth: torch.Tensor) -> float:
    """Assert the error of ``got`` and print and return the share of its budget."""
    assert got.shape == truth.shape and got.dtype == torch_out.dtype
    if got.numel() == 0:
        return 0.0
    assert got.isfinite().all(), f"{name}: poison reached the result"
    error = (got.double() - truth).abs().max().item()
    own = (torch_out.double() - truth).abs().max().item()
    budget = 2 * own + FLOOR[got.dtype] * truth.abs().max().item()
    share = error / budget if budget else float(error > 0)
    print(f"{name}: error {error:.2e}, PyTorch's {own:.2e}, {share:.0%} of the budget")
    assert share <= 1, f"{name}: error {error:.3e} is {share:.2f} of the budget {budget:.3e}"
    return share


def compare_with_reference(name: str, kernel: Callable, reference: Callable, *args) -> tuple[torch.Tensor, ...]:
    """Run ``kernel`` on guarded copies of ``args`` and hold it against ``reference``; returns the kernel's results.

    Non-contiguous tensors are passed as they are.
    """
    inputs = [guarded(a) if isinstance(a, torch.Tensor) and a.is_contiguous() else a for a in args]
    with poisoned_allocations():
        got = as_tuple(kernel(*inputs))
    own, truth = as_tuple(reference(*args)), as_tuple(reference(*widen(args)))
    for index, outputs in enumerate(zip(got, own, truth)):
        check_budget(f"{name}[{index}]" if len(got) > 1 else name, *outputs)
    return got


@pytest.fixture
def compare() -> Callable:
    """:func:`compare_with_reference`."""
    return compare_with_reference


@pytest.fixture
def poisoned() -> Callable:
    """:func:`poisoned_allocations`."""
    return poisoned_allocations


@pytest.fixture(name="guarded")
def guarded_fixture() -> Callable:
    """:func:`guarded`."""
    return guarded


@pytest.fixture(autouse=True)
def seeded():
    """The same numbers for a test alone or in a run; without the interpreter it is skipped."""
    if not triton_support.interpreted:
        pytest.skip("needs triton and TRITON_INTERPRET=1")
    torch.manual_seed(4)
