"""layer_norm_modulate against its formula, row by row."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import layer_norm_modulate

EPS = 1e-6


def by_formula(x, shift, scale, frames_per_token):
    rows = []
    for r, row in enumerate(x.double()):
        token = r // frames_per_token
        normed = (row - row.mean()) / (row.var(correction=0) + EPS).sqrt()
        rows.append(normed * (1 + scale[token].double()) + shift[token].double())
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "hidden", "frames"), [(1, 7, 1), (12, 64, 4), (6, 33, 1)])
def test_formula(rows, hidden, frames, dtype):
    torch.manual_seed(rows)
    x = (torch.randn(rows, hidden) * 2 + 1).to(dtype)
    shift, scale = torch.randn(2, rows // frames, hidden).to(dtype)
    out = layer_norm_modulate(x, shift, scale, frames, EPS)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), by_formula(x, shift, scale, frames), rtol=torch.finfo(dtype).eps, atol=1e-5
    )


def test_modulations_may_be_columns_of_one_matrix():
    x, packed = torch.randn(8, 16), torch.randn(2, 6 * 16)
    shift, scale = packed.chunk(6, dim=-1)[2:4]
    assert not shift.is_contiguous()
    torch.testing.assert_close(
        layer_norm_modulate(x, shift, scale, 4, EPS),
        layer_norm_modulate(x, shift.contiguous(), scale.contiguous(), 4, EPS),
        rtol=0,
        atol=0,
    )


def test_opcheck():
    args = (torch.randn(8, 16), torch.randn(2, 16), torch.randn(2, 16), 4, EPS)
    results = torch.library.opcheck(torch.ops.antiphon.layer_norm_modulate.default, args)
    assert set(results.values()) == {"SUCCESS"}
