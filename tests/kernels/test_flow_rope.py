"""flow_rope as a rotation of complex numbers."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import flow_rope


def tables(positions: int, head_dim: int):
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "heads", "head_dim"), [(1, 1, 2), (9, 4, 16), (5, 3, 6)])
def test_neighbouring_pairs_rotate_as_complex_numbers(rows, heads, head_dim, dtype):
    torch.manual_seed(rows)
    cos, sin = tables(50, head_dim)
    positions = torch.randint(0, 50, (rows,))
    qkv = torch.randn(rows, 3 * heads * head_dim).to(dtype)
    blocks = qkv.double().view(rows, 3, heads, head_dim // 2, 2)
    turn = torch.complex(cos.double(), sin.double())[positions][:, None]
    out = flow_rope(qkv, positions, cos, sin, heads)
    for got, block in zip(out[:2], (blocks[:, 0], blocks[:, 1]), strict=True):
        turned = torch.view_as_real(torch.view_as_complex(block.contiguous()) * turn).flatten(-2)
        assert got.dtype == dtype and got.shape == (rows, heads, head_dim)
        torch.testing.assert_close(got.double(), turned, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(out[2], qkv.view(rows, 3, heads, head_dim)[:, 2])


def test_scores_depend_on_the_distance_alone():
    cos, sin = tables(400, 8)
    q, k = torch.randn(2, 8)
    qkv = torch.cat((q, k, k))[None].repeat(4, 1)
    rotated_q, rotated_k, _ = flow_rope(qkv, torch.tensor([17, 5, 312, 300]), cos, sin, 1)
    near, far = (rotated_q[0] * rotated_k[1]).sum(), (rotated_q[2] * rotated_k[3]).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)


def test_opcheck():
    args = (torch.randn(5, 3 * 2 * 4), torch.arange(5), *tables(8, 4), 2)
    results = torch.library.opcheck(torch.ops.antiphon.flow_rope.default, args)
    assert set(results.values()) == {"SUCCESS"}
