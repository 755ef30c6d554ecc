"""flow_attention against plain softmax attention, stream by stream; what lies beyond the valid rows is poison."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import flow_attention

WINDOW = 11


def by_formula(q, k, v, scale):
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * scale
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.double())


def make(lengths, cached, heads, head_dim, dtype):
    torch.manual_seed(len(lengths))
    q, k, v = torch.randn(3, sum(lengths), heads, head_dim).to(dtype)
    slots = torch.arange(len(lengths)).flip(0) + 1
    caches = torch.full((2, len(lengths) + 2, WINDOW, heads, head_dim), torch.nan).to(dtype)
    for slot, n in zip(slots.tolist(), cached, strict=True):
        caches[:, slot, :n] = torch.randn(2, n, heads, head_dim).to(dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return q, k, v, bounds, caches[0], caches[1], slots, torch.tensor(cached, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("lengths", "cached"),
    [([1], [0]), ([4], [WINDOW]), ([7, 1, 12], [0, 5, WINDOW]), ([3, 3], [1, 0])],
)
def test_ragged_streams_with_windows(lengths, cached, dtype):
    heads, head_dim, scale = 3, 8, 8**-0.5
    args = make(lengths, cached, heads, head_dim, dtype)
    q, k, v, bounds, k_cache, v_cache, slots, _ = args
    out = flow_attention(*args, max(lengths), scale)
    assert out.dtype == dtype and out.shape == q.shape
    for s, (slot, n) in enumerate(zip(slots.tolist(), cached, strict=True)):
        rows = slice(int(bounds[s]), int(bounds[s + 1]))
        keys, values = torch.cat((k_cache[slot, :n], k[rows])), torch.cat((v_cache[slot, :n], v[rows]))
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            out[rows].double(), by_formula(q[rows], keys, values, scale), rtol=tolerance, atol=tolerance
        )


def test_a_stream_does_not_depend_on_its_neighbours():
    args = make([7, 1, 12], [0, 5, WINDOW], 3, 8, torch.float32)
    q, k, v, bounds, k_cache, v_cache, slots, cached = args
    together = flow_attention(*args, 12, 0.3)
    for s in range(3):
        rows = slice(int(bounds[s]), int(bounds[s + 1]))
        own = torch.tensor([0, rows.stop - rows.start], dtype=torch.int32)
        alone = flow_attention(
            q[rows], k[rows], v[rows], own, k_cache, v_cache, slots[s : s + 1], cached[s : s + 1], int(own[1]), 0.3
        )
        assert torch.equal(alone, together[rows])


def test_opcheck():
    args = (*make([3, 2], [2, 0], 2, 4, torch.float32), 3, 0.5)
    results = torch.library.opcheck(torch.ops.antiphon.flow_attention.default, args)
    assert set(results.values()) == {"SUCCESS"}
