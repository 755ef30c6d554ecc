"""``torch.library.opcheck`` of every registered operator: schema, mutations, fake results, dispatch under AOT with dynamic shapes."""

from __future__ import annotations

import pytest
import torch

from antiphon.planner.operator_cases import TOY, Maker, cases
from antiphon.planner.operator_cases_cpu import cpu_cases
from antiphon_kernels import operators

FIRST = {case.operator: case for case in reversed(cases(TOY) + cpu_cases(TOY))}
"""The first case of each operator of the lists that are compiled and timed."""
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", sorted(operators()))
def test_opcheck(name):
    """All checks; for float8 arguments, which PyTorch cannot compare on a CPU, all but that of what is written to."""
    checks = CHECKS[1:] if "fp8" in name else CHECKS
    results = torch.library.opcheck(
        getattr(torch.ops.antiphon, name).default,
        FIRST[name].build(Maker("cpu", torch.float32)).args,
        test_utils=checks,
    )
    assert results == dict.fromkeys(checks, "SUCCESS")
