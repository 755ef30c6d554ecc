"""Native attention of many rows: what it must not depend on, and keys that nobody may read."""

from __future__ import annotations

import pytest
import torch

import antiphon_kernels as ak

from .test_operators import DTYPES, assert_close, build, encoder, flow, prefill, run

CASES = [
    flow([1], [0], 3, 8),
    flow([7, 1, 12], [0, 5, 300], 3, 20),  # ragged, odd head, a window past one block of keys
    flow([200, 30], [61, 0], 2, 128),  # more rows than a chunk; 261 keys end just past a block
    encoder(2, 40, 3, 64, 0),
    encoder(3, 37, 2, 16, 4),  # block-causal with padding
    encoder(1, 300, 2, 64, 50),
    prefill([5], [5], 14, 2, 64),
    prefill([33, 1, 17], [33, 20, 300], 4, 2, 24),  # beside a decoding sequence; a chunk that continues
    flow([1, 15, 16, 17], [0, 16, 15, 16], 2, 32),  # around a tile of rows; 1, 31, 31 and 33 keys, around one of keys
    flow([33, 16], [256, 240], 2, 48),  # a depth half full, three tiles of dims; 289 and exactly 256 keys
    encoder(2, 31, 2, 80, 7),  # two full depths and half of one; ends within a tile
    prefill([17, 2], [530, 257], 4, 2, 128),  # three blocks of keys; one key behind a block
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_agrees_with_reference_on_any_number_of_threads(case, dtype, isa, poison, with_threads):
    args = build(case, dtype)
    one = with_threads(1, lambda: run(case, args))
    assert_close(case, args, one)
    for count in (2, 3):
        for a, b in zip(one, with_threads(count, lambda: run(case, args))):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [48, 64])
def test_a_stream_has_the_same_bits_alone(dim, dtype, isa):
    lengths, cached = [7, 40, 12], [0, 270, 31]
    args = build(flow(lengths, cached, 3, dim), dtype)
    q, k, v, starts, k_cache, v_cache, slots, cache_lens, _, scale = args
    with ak.use_backend("native"):
        together = ak.flow_attention(*args)
        for s, n in enumerate(lengths):
            rows, own = slice(int(starts[s]), int(starts[s + 1])), torch.tensor([0, n], dtype=torch.int32)
            window = (k_cache, v_cache, slots[s : s + 1], cache_lens[s : s + 1])
            assert torch.equal(together[rows], ak.flow_attention(q[rows], k[rows], v[rows], own, *window, n, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cut", [2, 37, 256, 290])
def test_a_prompt_has_the_same_bits_in_two_chunks(cut, dtype, isa):
    args = build(prefill([300], [300], 4, 2, 64), dtype)
    q, *paged, _, _, _, scale = args
    with ak.use_backend("native"):
        whole = ak.paged_attention(*args)
        for begin, end in ((0, cut), (cut, 300)):
            starts, seen = torch.tensor([0, end - begin], dtype=torch.int32), torch.tensor([end], dtype=torch.int32)
            part = ak.paged_attention(q[begin:end].clone(), *paged, starts, seen, end - begin, scale)
            assert torch.equal(part, whole[begin:end])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_segment_has_the_same_bits_beside_others_and_never_reads_its_padding(dtype, isa):
    q, k, v, lengths, block = build(encoder(3, 40, 2, 32, 8), dtype)
    for s, n in enumerate(lengths.tolist()):
        k[s, n:], v[s, n:] = torch.nan, torch.nan
    with ak.use_backend("native"):
        together = ak.encoder_attention(q, k, v, lengths, block)
        for s in range(3):
            one = slice(s, s + 1)
            assert torch.equal(together[one], ak.encoder_attention(q[one], k[one], v[one], lengths[one], block))
    assert together.isfinite().all()


def test_large_scores_stay_finite_and_their_order_does_not_matter(isa):
    """Maxima that rise and fall by thousands from block to block of keys."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 700, 1, 16) for _ in range(3))
    k *= torch.linspace(0, 400, 700)[torch.randperm(700)][None, :, None, None]
    none = torch.zeros(0, dtype=torch.int64)
    exact = ak.encoder_attention.reference(q.double(), k.double(), v.double(), none, 0)
    with ak.use_backend("native"):
        out = ak.encoder_attention(q, k, v, none, 0)
        flipped = ak.encoder_attention(q, k.flip(1), v.flip(1), none, 0)
    for got in (out, flipped):
        torch.testing.assert_close(got.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dim", [32, 48, 64, 128])
@pytest.mark.parametrize("keys", [33, 300])
def test_float32_keeps_its_precision_over_a_wide_range(keys, dim, isa):
    """Queries from 1e-20 to 1e20, keys that bring scores back to the size of 1, values from 1e-20 to 1e4 in one column.

    Columns of the result are compared each by its own largest value.
    """
    torch.manual_seed(2)
    sizes = 10 ** torch.linspace(-20, 20, dim)[torch.randperm(dim)]
    q, k = torch.randn(1, keys, 1, dim) * sizes, torch.randn(1, keys, 1, dim) / sizes
    v = torch.randn(1, keys, 1, dim) * 10 ** (torch.rand(1, keys, 1, dim) * 24 - 20)
    none = torch.zeros(0, dtype=torch.int64)
    exact = ak.encoder_attention.reference(q.double(), k.double(), v.double(), none, 0)
    own = ak.encoder_attention.reference(q, k, v, none, 0)
    with ak.use_backend("native"):
        got = ak.encoder_attention(q, k, v, none, 0)
    largest = exact.abs().amax(dim=1, keepdim=True)
    floor = torch.finfo(torch.float32).eps * (1 + dim**0.5)
    bound = 2 * ((own - exact) / largest).abs().max() + floor
    used = (((got - exact) / largest).abs().max() / bound).item()
    print(f"{keys} keys, {dim} dims: {100 * used:.0f} % of the error budget")
    assert used <= 1


@pytest.mark.parametrize("dim", [16, 40, 64])
def test_scores_below_float32_are_ignored_and_above_it_stay_finite(dim, isa):
    """Three keys of four have products of up to -1e60 with a query; no result may be anything but a mean of values."""
    torch.manual_seed(3)
    q, k, v = torch.rand(1, 290, 2, dim) + 0.5, torch.rand(1, 290, 2, dim) + 0.5, torch.randn(1, 290, 2, dim)
    k *= torch.where(torch.arange(290) % 4 == 0, 1e-31, -1e30)[None, :, None, None]
    q *= torch.where(torch.arange(290) % 3 == 0, 1e30, 1e25)[None, :, None, None]
    none = torch.zeros(0, dtype=torch.int64)
    expected = ak.encoder_attention.reference(q.double(), k.double(), v.double(), none, 0)
    with ak.use_backend("native"):
        got = ak.encoder_attention(q, k, v, none, 0)
        above = ak.encoder_attention(q, -k, v, none, 0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    assert above.isfinite().all() and above.abs().max() <= v.abs().max() * 1.001


def test_awkward_memory_changes_nothing(isa):
    """Unaligned heads cut from packed rows, as the encoders cut them, and heads with strided elements."""
    q, k, v, lengths, block = build(encoder(2, 35, 3, 24, 5), torch.bfloat16)
    packed = torch.stack((q, k, v), dim=2).flatten(2)
    shifted = torch.cat((packed.new_zeros(1), packed.flatten()))[1:].view(packed.shape)
    cut = shifted.unflatten(-1, (3, 3, 24)).unbind(2)
    strided = tuple(torch.stack((t, t * torch.nan), dim=-1)[..., 0] for t in (q, k, v))
    with ak.use_backend("native"):
        plain = ak.encoder_attention(q, k, v, lengths, block)
        for inputs in (cut, strided):
            assert torch.equal(plain, ak.encoder_attention(*inputs, lengths, block))


def test_no_rows():
    """Nothing to attend to is no error."""
    empty = torch.zeros(0, 2, 16)
    window = torch.zeros(1, 4, 2, 16)
    none = torch.zeros(0, dtype=torch.int64)
    out = ak.flow_attention(empty, empty, empty, torch.zeros(1).int(), window, window, none, none.int(), 0, 1.0)
    assert out.shape == empty.shape
