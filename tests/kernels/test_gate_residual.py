"""gate_residual against its formula, row by row."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import gate_residual


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "hidden", "frames"), [(1, 7, 1), (12, 64, 4), (6, 33, 2)])
def test_formula(rows, hidden, frames, dtype):
    torch.manual_seed(rows)
    x, y = torch.randn(2, rows, hidden).to(dtype)
    gate = torch.randn(rows // frames, hidden).to(dtype)
    expected = torch.stack([x[r].double() + gate[r // frames].double() * y[r].double() for r in range(rows)])
    out = gate_residual(x, y, gate, frames)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_gate_may_be_a_column_of_a_matrix():
    x, y, packed = torch.randn(8, 16), torch.randn(8, 16), torch.randn(2, 6 * 16)
    gate = packed.chunk(6, dim=-1)[5]
    assert not gate.is_contiguous()
    assert torch.equal(gate_residual(x, y, gate, 4), gate_residual(x, y, gate.contiguous(), 4))


def test_opcheck():
    args = (torch.randn(8, 16), torch.randn(8, 16), torch.randn(2, 16), 4)
    results = torch.library.opcheck(torch.ops.antiphon.gate_residual.default, args)
    assert set(results.values()) == {"SUCCESS"}
