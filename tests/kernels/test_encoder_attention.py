"""encoder_attention: full and block-causal attention against the written-out formula in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from antiphon_kernels import encoder_attention


def formula(q, k, v, lengths, block) -> torch.Tensor:
    """Loops over segments and queries; a query's visible keys are listed one by one."""
    q, k, v = (t.double() for t in (q, k, v))
    result = torch.empty_like(q)
    for n in range(q.shape[0]):
        for i in range(q.shape[1]):
            keys = [
                j for j in range(q.shape[1])
                if block == 0 or ((j <= i or i // block == j // block) and j < lengths[n])
            ]  # fmt: skip
            scores = torch.einsum("hd,jhd->hj", q[n, i], k[n, keys]) / math.sqrt(q.shape[-1])
            result[n, i] = torch.einsum("hj,jhd->hd", scores.softmax(-1), v[n, keys])
    return result


def inputs(segments, rows, heads, dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    qkv = torch.randn(segments, rows, 3, heads, dim, generator=generator).to(dtype)
    return qkv.unbind(2)


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "rows, lengths, block",
    [
        (7, [7, 3], 0),  # lengths are ignored without a block
        (7, [7, 1], 3),  # one valid key; rows not a multiple of the block
        (8, [8, 5], 4),
        (9, [9, 9], 200),  # everything in one block
        (33, [30, 17], 8),
    ],
)
def test_matches_the_formula(dtype, allowed, rows, lengths, block, within_budget):
    q, k, v = inputs(2, rows, 3, 16, dtype)
    lengths = torch.tensor(lengths)
    y = encoder_attention(q, k, v, lengths, block)
    assert y.shape == q.shape and y.dtype == dtype and y.is_contiguous()
    error = (y.double() - formula(q, k, v, lengths, block)).abs().max().item()
    within_budget(f"attention {rows} rows, block {block}, {dtype}", error, allowed)


def test_what_lies_behind_the_length_is_never_seen():
    q, k, v = inputs(1, 12, 2, 8)
    lengths = torch.tensor([5])
    before = encoder_attention(q, k, v, lengths, 4)
    k, v = k.clone(), v.clone()
    k[:, 5:], v[:, 5:] = 1e4, -1e4
    assert torch.equal(encoder_attention(q, k, v, lengths, 4), before)


def test_no_row_sees_a_later_block():
    q, k, v = inputs(1, 12, 2, 8)
    lengths = torch.tensor([12])
    before = encoder_attention(q, k, v, lengths, 4)
    k = k.clone()
    k[:, 8:] += 1
    after = encoder_attention(q, k, v, lengths, 4)
    assert torch.equal(after[:, :8], before[:, :8]) and not torch.equal(after[:, 8:], before[:, 8:])


@pytest.mark.parametrize("block", [0, 4])
def test_registration(block):
    q, k, v = inputs(2, 6, 2, 8)
    torch.library.opcheck(torch.ops.antiphon.encoder_attention.default, (q, k, v, torch.tensor([6, 2]), block))
    assert encoder_attention.backends("cpu")[-1] == "reference"
