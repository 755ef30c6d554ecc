"""That the other tests would notice a kernel which leaves its buffers: it would not survive."""

from __future__ import annotations

import faulthandler
import os
import resource
from collections.abc import Callable

import pytest
import torch
from compact_matrices import matrix
from guarded_memory import PAGE, GuardedMemory, guarded

from antiphon_kernels.linear_compact import compact
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels import _native
from antiphon_kernels.native.arguments import DTYPES

RAISED = 77
"""Exit code of a child whose function raised; a sanitizer's own is 1."""


def exit_status(function: Callable[[], object]) -> int:
    """What a forked process that calls ``function`` ends with: 0, an exit code, or minus the signal that killed it.

    AssertionError if it raised: that is no fault, and the copy of this process must not run on.
    """
    child = os.fork()
    if not child:
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the sanitizer's report of the fault we want
            function()
            os._exit(0)
        finally:
            os._exit(RAISED)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != RAISED, "the function raised"
    return status


def linear(weight: torch.Tensor, x: torch.Tensor, n: int, out: torch.Tensor) -> None:
    """The kernel on the first ``n`` rows of W, whether it has them or not."""
    sizes = len(x), len(x), n, x.shape[1]
    _native.linear(DTYPES[x.dtype], x.data_ptr(), x.stride(0), weight.data_ptr(), weight.stride(0), 0, out.data_ptr(), *sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(32, 64), (3, 5)], ids=["whole vectors and tiles", "ragged"])
def test_reading_beyond_a_tensor_is_fatal(n, k, dtype, isa):
    x, weight, out = torch.zeros(2, k, dtype=dtype), torch.zeros(n, k, dtype=dtype), torch.zeros(2 * n + 2, dtype=dtype)
    assert exit_status(lambda: linear(weight, x, n, out)) == 0
    assert exit_status(lambda: linear(weight[1:], x, n, out)) != 0


@pytest.mark.parametrize("kernel", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 16], ids=["one row", "tiles"])
def test_reading_beyond_quantised_weights_is_fatal(rows, kernel, isa):
    x, out = torch.zeros(rows, 128), torch.zeros(rows, 33)
    weight, scale = (quantize_int8 if kernel == "int8" else quantize_int4)(torch.zeros(33, 128))
    run = _native.linear_int8 if kernel == "int8" else _native.linear_int4

    def call(weight: torch.Tensor) -> None:
        run(0, x.data_ptr(), 128, weight.data_ptr(), scale.data_ptr(), 0, out.data_ptr(), rows, rows, 33, 128)

    assert exit_status(lambda: call(weight)) == 0
    assert exit_status(lambda: call(weight[1:])) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 16], ids=["one row", "tiles"])
def test_reading_beyond_compact_weights_is_fatal(rows, dtype, isa):
    """Bytes or escapes: of a row in which all weights are listed apart, the last."""
    x, out = torch.zeros(rows, 128, dtype=dtype), torch.zeros(rows, 65, dtype=dtype)
    weight, codes = (guarded(t) for t in compact(matrix(65, 128, [(64, column) for column in range(128)])))

    def call(weight: torch.Tensor, codes: torch.Tensor) -> None:
        operands = DTYPES[dtype], x.data_ptr(), 128, weight.data_ptr(), codes.data_ptr(), 0, out.data_ptr()
        _native.linear_compact(*operands, rows, rows, 65, 128)

    assert exit_status(lambda: call(weight, codes)) == 0
    assert exit_status(lambda: call(weight[1:], codes)) != 0
    assert exit_status(lambda: call(weight, guarded(codes[:-128]))) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(32, 64), (3, 5)], ids=["whole vectors and tiles", "ragged"])
def test_writing_beyond_a_tensor_is_fatal(n, k, dtype, isa):
    x, weight, out = torch.zeros(2, k, dtype=dtype), torch.zeros(n, k, dtype=dtype), torch.zeros(2, n, dtype=dtype)
    assert exit_status(lambda: linear(weight, x, n, out)) == 0
    assert exit_status(lambda: linear(weight, x, n, out.flatten()[1:])) != 0


def test_guarded_tensors_keep_contents_views_and_aliases():
    x = torch.arange(12.0).view(3, 4)
    with GuardedMemory():
        copy, view, same = x + 0, x[1:], x.add_(1)
        joined, nothing = torch.cat([x, copy]), torch.empty(0, 3)
    assert same is x and view.data_ptr() == x[1:].data_ptr() and nothing.shape == (0, 3)
    assert torch.equal(copy, x - 1) and torch.equal(joined[:3], x)
    assert (copy.data_ptr() + 4 * copy.numel()) % PAGE == 0
    assert guarded(x.bfloat16()).data_ptr() % PAGE == PAGE - 24
