"""Triton against the reference: embedding, norms, SwiGLU, rotary with cache write."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels.add_rms_norm import add_rms_norm_triton
from antiphon_kernels.add_rms_norm import reference as add_rms_norm
from antiphon_kernels.dual_embed import dual_embed_triton
from antiphon_kernels.dual_embed import reference as dual_embed
from antiphon_kernels.rms_norm import reference as rms_norm
from antiphon_kernels.rms_norm import rms_norm_triton
from antiphon_kernels.rope_cache import reference as rope_cache
from antiphon_kernels.rope_cache import rope_cache_triton
from antiphon_kernels.silu_mul import reference as silu_mul
from antiphon_kernels.silu_mul import silu_mul_triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 1024

NORM_SHAPES = [
    pytest.param(1, 1, id="one-value"),
    pytest.param(1, 61, id="prime-below-a-warp"),
    pytest.param(3, 255, id="block-minus-1"),
    pytest.param(3, 256, id="block"),
    pytest.param(3, 257, id="block-plus-1"),
    pytest.param(2, 3584, id="7B"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "hidden"), NORM_SHAPES)
def test_rms_norm(compare, rows, hidden, dtype):
    x, weight = torch.randn(rows, hidden).to(dtype), torch.randn(1, hidden).to(dtype)
    (out,) = compare("rms_norm", rms_norm_triton, rms_norm, x, weight, rows, 1e-6)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "hidden"), NORM_SHAPES)
def test_add_rms_norm(compare, rows, hidden, dtype):
    x, residual = torch.randn(2, rows, hidden).to(dtype)
    weight = torch.randn(1, hidden).to(dtype)
    _, total = compare("add_rms_norm", add_rms_norm_triton, add_rms_norm, x, residual, weight, rows, 1e-6)
    assert torch.equal(total, x + residual)


@pytest.mark.parametrize("split", [0, 1, 3, 5], ids=["audio-only", "one-text", "mixed", "text-only"])
def test_norms_pick_the_branch_of_the_row(compare, split):
    x, residual, weight = torch.randn(5, 96), torch.randn(5, 96), torch.randn(2, 96)
    compare("rms_norm", rms_norm_triton, rms_norm, x, weight, split, 1e-6)
    (out, _) = compare("add_rms_norm", add_rms_norm_triton, add_rms_norm, x, residual, weight, split, 1e-6)
    assert out.shape == (5, 96)


def test_norms_read_strided_rows(compare):
    wide = torch.randn(4, 300)
    x, residual, weight = wide[:, 3:131], wide[:, 131:259], torch.randn(1, 128)
    compare("rms_norm", rms_norm_triton, rms_norm, x, weight, 4, 1e-6)
    (out, _) = compare("add_rms_norm", add_rms_norm_triton, add_rms_norm, x, residual, weight, 4, 1e-6)
    assert out.is_contiguous()


def test_norm_of_zeros_and_of_large_values(compare):
    x = torch.stack((torch.zeros(64), torch.full((64,), 3e4)))
    (out,) = compare("rms_norm", rms_norm_triton, rms_norm, x, torch.ones(1, 64), 2, 1e-6)
    assert (out[0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width"),
    [
        pytest.param(1, 1, id="one-value"),
        pytest.param(2, BLOCK - 1, id="block-minus-1"),
        pytest.param(2, BLOCK, id="block"),
        pytest.param(2, BLOCK + 1, id="block-plus-1"),
        pytest.param(1, 18944, id="7B"),
    ],
)
def test_silu_mul(compare, rows, width, dtype):
    x = (3 * torch.randn(rows, 2 * width)).to(dtype)
    (out,) = compare("silu_mul", silu_mul_triton, silu_mul, x)
    assert out.shape == (rows, width)


def test_silu_mul_far_from_zero(compare):
    """silu underflows to zero on the left and is the identity on the right."""
    x = torch.tensor([[-1e30, -120.0, -90.0, 0.0, 90.0, 1e30, 1, 1, 1, 1, 1, 1]])
    (out,) = compare("silu_mul", silu_mul_triton, silu_mul, x)
    assert out[0, 3] == 0 and out[0, 5] == 1e30


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (5, BLOCK - 1), (5, BLOCK + 1), (2, 3584)])
def test_dual_embed(compare, rows, hidden, dtype):
    table, features = torch.randn(19, hidden).to(dtype), torch.randn(3, hidden).to(dtype)
    ids = torch.randint(0, 19, (2, rows))
    (out,) = compare("dual_embed", dual_embed_triton, dual_embed, *ids, table, features, torch.arange(rows) % 4 - 1)
    assert out.dtype == dtype


def test_dual_embed_without_features(compare):
    ids = torch.tensor([[0, 18, 7], [18, 0, 7]])
    (out,) = compare(
        "dual_embed", dual_embed_triton, dual_embed, *ids, torch.randn(19, 40), None, torch.full((3,), -1)
    )
    assert out.shape == (3, 40)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [
        pytest.param(28, 4, 128, id="7B"),
        pytest.param(4, 2, 64, id="toy"),
        pytest.param(3, 1, 16, id="one-key-head"),
        pytest.param(8, 8, 32, id="no-groups"),
    ],
)
def test_rope_cache(compare, num_heads, num_kv_heads, head_dim, dtype):
    rows, pages, page_size, positions = 5, 4, 16, 64
    angle = torch.arange(positions)[:, None] * 10.0 ** -torch.linspace(0, 4, head_dim // 2)
    caches = torch.randn(2, pages, page_size, num_kv_heads, head_dim).to(dtype)
    qkv = torch.randn(rows, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    slots = torch.tensor([0, 63, 17, 16, 15])

    def run(function, *args):
        k, v = (c.clone() for c in args[4:])
        q = function(args[0], torch.tensor([0, 63, 5, 1, 40]), *args[1:3], args[3], k, v, num_heads)
        return q, k, v

    _, k, v = compare(
        "rope_cache", lambda *a: run(rope_cache_triton, *a), lambda *a: run(rope_cache, *a),
        qkv, angle.cos(), angle.sin(), slots, *caches,
    )  # fmt: skip
    untouched = torch.ones(pages * page_size, dtype=torch.bool)
    untouched[slots] = False
    for cache, before in zip((k, v), caches):
        assert torch.equal(cache.flatten(0, 1)[untouched], before.flatten(0, 1)[untouched])


def test_row_alone_is_row_in_a_batch():
    """Bitwise: no reduction crosses rows."""
    x, residual, weight = torch.randn(7, 200).bfloat16(), torch.randn(7, 200).bfloat16(), torch.randn(1, 200).bfloat16()
    batch = add_rms_norm_triton(x, residual, weight, 7, 1e-6)
    alone = add_rms_norm_triton(x[4:5], residual[4:5], weight, 1, 1e-6)
    assert all(torch.equal(b[4:5], a) for a, b in zip(alone, batch))
