"""``torch.library.opcheck`` of every registered operator: schema, mutations, fake results, dispatch under AOT with dynamic shapes."""

from __future__ import annotations

import pytest
import torch

from antiphon.planner.operator_cases import TOY, Maker, cases
from antiphon_kernels import operators, pack_fixed

FIRST = {case.operator: case for case in reversed(cases(TOY))}
"""The first case of each operator of the list that is compiled and timed."""


def arguments(name: str) -> tuple:
    """Small arguments of an operator; those that run on PyTorch's own kernels on a GPU are not among the cases."""
    if name == "linear_fixed":
        return torch.randn(3, 70), *pack_fixed(torch.randn(33, 70)), torch.randn(33)
    if name == "gelu":
        return torch.randn(3, 7), True
    if name == "conv1d":
        return torch.randn(2, 8, 20), torch.randn(8, 8, 3), torch.randn(8), torch.randn(2, 8, 20), 2
    return FIRST[name].build(Maker("cpu", torch.float32)).args


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", sorted(operators()))
def test_opcheck(name):
    """All checks; for float8 arguments, which PyTorch cannot compare on a CPU, all but that of what is written to."""
    checks = CHECKS[1:] if "fp8" in name else CHECKS
    results = torch.library.opcheck(getattr(torch.ops.antiphon, name).default, arguments(name), test_utils=checks)
    assert results == dict.fromkeys(checks, "SUCCESS")
