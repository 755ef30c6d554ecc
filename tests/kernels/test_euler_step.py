"""euler_step: one product, one sum, one rounding."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import euler_step


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_formula_with_one_rounding(dtype):
    torch.manual_seed(0)
    x, v = torch.randn(2, 37, 80).to(dtype)
    out = euler_step(x, v, 0.0345)
    assert out.dtype == dtype
    exact = x.double() + 0.0345 * v.double()
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_opcheck():
    args = (torch.randn(5, 80), torch.randn(5, 80), 0.03)
    results = torch.library.opcheck(torch.ops.antiphon.euler_step.default, args)
    assert set(results.values()) == {"SUCCESS"}
