"""Triton paged attention against the reference: ragged batches, block tables, grouped heads, split keys."""

from __future__ import annotations

import pytest
import torch

from antiphon_kernels import paged_attention as operator
from antiphon_kernels.paged_attention import SPLIT, arrival_counters, paged_attention_triton
from antiphon_kernels.paged_attention import reference as paged_attention

PAGE = 16


def batch(sequences, heads=(2, 1), head_dim=32, dtype=torch.float32, spare_pages=3):
    """Arguments for sequences of (rows, context length): pages in random order, unused cache and table entries poisoned."""
    num_heads, num_kv_heads = heads
    used = [-(-length // PAGE) for _, length in sequences]
    order = torch.randperm(sum(used) + spare_pages, dtype=torch.int32)
    tables = torch.full((len(sequences), max(used) + 1), 10**6, dtype=torch.int32)
    cache = torch.full((2, len(order), PAGE, num_kv_heads, head_dim), float("nan"), dtype=dtype)
    for s, (_, length) in enumerate(sequences):
        pages = order[sum(used[:s]) : sum(used[: s + 1])]
        tables[s, : used[s]] = pages
        slots = (pages.long()[:, None] * PAGE + torch.arange(PAGE)).flatten()[:length]
        cache.flatten(1, 2)[:, slots] = torch.randn(2, length, num_kv_heads, head_dim).to(dtype)
    rows = [n for n, _ in sequences]
    q = torch.randn(sum(rows), num_heads, head_dim).to(dtype)
    cu = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    lens = torch.tensor([length for _, length in sequences], dtype=torch.int32)
    return q, *cache, tables, cu, lens, max(rows), head_dim**-0.5


CASES = [
    pytest.param([(1, 1)], id="first-token"),
    pytest.param([(1, 63), (1, 64), (1, 65)], id="around-a-key-block"),
    pytest.param([(1, SPLIT), (1, SPLIT + 1), (1, 5)], id="around-a-split"),
    pytest.param([(1, 2 * SPLIT + 77)], id="three-splits"),
    pytest.param([(5, 5)], id="short-prompt"),
    pytest.param([(33, 33), (2, 70)], id="prompt-and-chunk"),
    pytest.param([(1, 40), (37, 100), (1, 7), (2, 2)], id="mixed"),
]


@pytest.mark.parametrize("sequences", CASES)
def test_batches(compare, sequences):
    (out,) = compare("paged_attention", paged_attention_triton, paged_attention, *batch(sequences))
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("sequences", "heads", "head_dim"),
    [
        pytest.param([(1, 300), (1, 17)], (28, 4), 128, id="7B-decode"),
        pytest.param([(3, 150), (1, 9)], (7, 1), 128, id="7B-group-prefill"),
        pytest.param([(1, 20), (4, 30)], (4, 2), 64, id="toy"),
        pytest.param([(1, 20), (17, 17)], (3, 3), 16, id="no-groups"),
    ],
)
def test_half_precision(compare, sequences, heads, head_dim, dtype):
    (out,) = compare("paged_attention", paged_attention_triton, paged_attention, *batch(sequences, heads, head_dim, dtype))
    assert out.dtype == dtype


def test_empty_sequences_are_skipped(compare):
    """A sequence without rows, as in a step that only the others take part in."""
    q, k, v, tables, cu, lens, most, scale = batch([(2, 9), (1, 4)])
    wide = torch.cat((tables[:1], tables[:1], tables[1:]))
    cu, lens = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([9, 9, 4], dtype=torch.int32)
    (out,) = compare("paged_attention", paged_attention_triton, paged_attention, q, k, v, wide, cu, lens, most, scale)
    assert out.shape == q.shape


def test_large_scores_do_not_overflow(compare):
    q, *rest = batch([(1, 90), (3, 40)])
    (out,) = compare("paged_attention", paged_attention_triton, paged_attention, 200 * q, *rest)
    assert out.isfinite().all()


def test_sequence_alone_is_sequence_in_a_batch():
    """Bitwise, also for a decode beside a prefill."""
    q, k, v, tables, cu, lens, _, scale = batch([(1, SPLIT + 40), (9, 30), (1, 50)])
    together = paged_attention_triton(q, k, v, tables, cu, lens, 9, scale)
    for s in range(3):
        rows = slice(int(cu[s]), int(cu[s + 1]))
        n = rows.stop - rows.start
        alone_cu = torch.tensor([0, n], dtype=torch.int32)
        alone = paged_attention_triton(q[rows], k, v, tables[s : s + 1], alone_cu, lens[s : s + 1], n, scale)
        assert torch.equal(alone, together[rows])


def test_arrival_counters_are_left_at_zero():
    q, *rest = batch([(1, 3 * SPLIT), (1, 2 * SPLIT)])
    paged_attention_triton(q, *rest)
    assert not arrival_counters(2, q.device).any()


def test_backend_refuses_what_the_kernel_cannot_do():
    q, *rest = batch([(1, 4)], head_dim=24)
    assert "triton" in operator.backends("cuda")
    from antiphon_kernels.paged_attention import paged_attention_supported

    assert not paged_attention_supported(q, *rest)
