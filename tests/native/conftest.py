"""Every native test runs on each instruction set of this machine, in memory that ends at a protected page.

Where AddressSanitizer watches (``make sanitize``), ordinary memory is used. Uninitialised outputs are NaN.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from guarded_memory import SANITIZED, GuardedMemory

from antiphon_kernels import native

ISAS = ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"]


@pytest.fixture(params=ISAS)
def isa(request) -> str:
    """The instruction set in use for this test; tensors made in it lie in guarded memory."""
    if not native.available:
        pytest.skip(f"native module not built: {native.BUILD_COMMAND}")
    from antiphon_kernels import _native

    if request.param not in _native.available_isas():
        pytest.skip(f"{request.param}: not on this machine")
    before = _native.isa()
    _native.set_isa(request.param)
    with nullcontext() if SANITIZED else GuardedMemory():
        yield request.param
    _native.set_isa(before)


@pytest.fixture
def poison():
    """``torch.empty`` returns NaN, so an output that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def with_threads():
    """A function that runs another with a number of native threads."""
    from antiphon_kernels import _native

    before = _native.num_threads()

    def run(count: int, function):
        _native.set_num_threads(count)
        return function()

    yield run
    _native.set_num_threads(before)
