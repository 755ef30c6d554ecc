"""Native operators against their references: every instruction set, dtype, awkward shape and thread count.

The bound: at most twice PyTorch's own error in the same dtype, both measured against the reference in float64, plus one
rounding of the largest value and the rounding of a float32 sum over a row. Outputs start as NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import antiphon_kernels as ak

DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """One call of an operator: ``make(random)`` builds its arguments, ``random(*shape)`` draws normals of the dtype."""

    name: str
    operator: ak.Operator
    make: Callable

    def __repr__(self) -> str:
        return self.name


def norm(rows: int, hidden: int, split: int, fused: bool) -> Case:
    def make(random):
        weight = random(1 if split == rows else 2, hidden)
        inputs = (random(rows, hidden), random(rows, hidden)) if fused else (random(rows, hidden),)
        return *inputs, weight, split, 1e-6

    operator = ak.add_rms_norm if fused else ak.rms_norm
    return Case(f"{operator.name}-{rows}x{hidden}-split{split}", operator, make)


def silu(rows: int, half: int) -> Case:
    return Case(f"silu_mul-{rows}x{half}", ak.silu_mul, lambda random: (random(rows, 2 * half) * 4,))


def modulate(rows: int, hidden: int, frames: int) -> Case:
    def make(random):
        packed = random(rows // frames, 2 * hidden)  # shift and scale are strided columns of one matrix, as in the DiT
        return random(rows, hidden) + 1, packed[:, :hidden], packed[:, hidden:], frames, 1e-6

    return Case(f"layer_norm_modulate-{rows}x{hidden}-every{frames}", ak.layer_norm_modulate, make)


def gate(rows: int, hidden: int, frames: int) -> Case:
    def make(random):
        return random(rows, hidden), random(rows, hidden), random(rows // frames, 3 * hidden)[:, hidden:-hidden], frames

    return Case(f"gate_residual-{rows}x{hidden}-every{frames}", ak.gate_residual, make)


def snake(batch: int, channels: int, length: int, steep: float = 5.0) -> Case:
    def make(random):
        alpha, inv_beta = torch.rand(channels) * steep, torch.rand(channels)
        return random(batch, channels, length), alpha, inv_beta, torch.randn(12) / 3, torch.randn(12) / 3

    return Case(f"alias_free_snake-{batch}x{channels}x{length}-alpha{steep:g}", ak.alias_free_snake, make)


def attention(lengths: list[int], heads: int, kv_heads: int, dim: int) -> Case:
    def make(random):
        pages_per = [-(-n // 16) for n in lengths]
        pages = torch.randperm(sum(pages_per) + 2).to(torch.int32)
        tables = torch.full((len(lengths), max(pages_per)), -1, dtype=torch.int32)  # past the last page: never read
        for s, n in enumerate(pages_per):
            tables[s, :n] = pages[sum(pages_per[:s]) : sum(pages_per[:s]) + n]
        shape = (len(pages), 16, kv_heads, dim)
        starts = torch.arange(len(lengths) + 1, dtype=torch.int32)
        lens = torch.tensor(lengths, dtype=torch.int32)
        return random(len(lengths), heads, dim), random(*shape), random(*shape), tables, starts, lens, 1, dim**-0.5

    return Case(f"paged_attention-{lengths}-{heads}q{kv_heads}kv{dim}", ak.paged_attention, make)


def prefill(rows: list[int], lengths: list[int], heads: int, kv_heads: int, dim: int) -> Case:
    """Chunks of ``rows`` that end sequences of ``lengths``."""

    def make(random):
        _, k, v, tables, _, lens, _, scale = attention(lengths, heads, kv_heads, dim).make(random)
        starts = torch.tensor([0, *rows]).cumsum(0).int()
        return random(sum(rows), heads, dim), k, v, tables, starts, lens, max(rows), scale

    return Case(f"paged_attention-{rows}of{lengths}-{heads}q{kv_heads}kv{dim}", ak.paged_attention, make)


def flow(lengths: list[int], cached: list[int], heads: int, dim: int) -> Case:
    """Streams of ``lengths`` rows with ``cached`` rows in their windows, whose other rows are NaN."""

    def make(random):
        q, k, v = (random(sum(lengths), heads, dim) for _ in range(3))
        slots = torch.arange(len(lengths)).flip(0) + 1
        windows = [random(len(lengths) + 1, max([*cached, 1]), heads, dim) for _ in range(2)]
        for slot, n in zip(slots.tolist(), cached):
            for window in windows:
                window[slot, n:] = torch.nan
        starts, lens = torch.tensor([0, *lengths]).cumsum(0).int(), torch.tensor(cached, dtype=torch.int32)
        return q, k, v, starts, *windows, slots, lens, max(lengths), dim**-0.5

    return Case(f"flow_attention-{lengths}over{cached}-{heads}x{dim}", ak.flow_attention, make)


def encoder(segments: int, rows: int, heads: int, dim: int, block: int) -> Case:
    def make(random):
        lengths = torch.arange(segments) * 9 % rows + 1
        return (
            random(segments, rows, heads, dim),
            *(random(segments, rows, heads, dim) for _ in range(2)),
            lengths,
            block,
        )

    return Case(f"encoder_attention-{segments}x{rows}-{heads}x{dim}-block{block}", ak.encoder_attention, make)


def rotation(rows: int, heads: int, dim: int) -> Case:
    def make(random):
        angles = torch.randn(50, dim // 2)
        return random(rows, 3 * heads * dim), torch.randint(50, (rows,)), angles.cos(), angles.sin(), heads

    return Case(f"flow_rope-{rows}-{heads}x{dim}", ak.flow_rope, make)


def activation(rows: int, hidden: int, tanh: bool) -> Case:
    return Case(f"gelu-{rows}x{hidden}-tanh{tanh:d}", ak.gelu, lambda random: (random(rows, hidden) * 4, tanh))


CASES = [
    norm(1, 1, 1, False),  # smallest
    norm(5, 67, 2, False),  # a prime below and across a vector; both branches
    norm(3, 128, 0, True),  # whole vectors; the second branch alone
    norm(2, 3584, 1, True),  # the real width
    silu(1, 1),
    silu(3, 511),  # one below a thread's block
    silu(2, 513),  # one above
    silu(1, 18944),  # the real width
    modulate(12, 67, 4),
    modulate(8, 2304, 4),  # the real width
    modulate(3, 16, 1),
    gate(12, 67, 4),
    gate(8, 2304, 4),
    *(snake(2, 3, n) for n in (1, 2, 5, 31)),  # shorter than the filters' reach
    *(snake(1, 2, n) for n in (1023, 1024, 1025, 2500)),  # around a tile
    snake(1, 2, 300, steep=3e5),  # arguments too large for the vector range reduction
    attention([1], 4, 2, 64),
    attention([16, 1, 33, 17], 14, 2, 64),  # around a page; seven heads per kv head
    attention([70, 5], 28, 4, 128),  # the real heads
    attention([40], 12, 1, 24),  # more heads than one pass takes, an odd head size
    attention([9, 31], 3, 3, 20),  # no sharing
    rotation(1, 1, 2),
    rotation(5, 3, 20),  # not whole vectors
    rotation(4, 18, 128),  # the real heads
    activation(1, 1, True),
    activation(3, 343, True),  # two elements past two blocks of a thread
    activation(3, 511, False),
]


def build(case: Case, dtype: torch.dtype) -> tuple:
    torch.manual_seed(7)
    return case.make(lambda *shape: torch.randn(*shape).to(dtype))


def outputs(value) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


def run(case: Case, args: tuple) -> list[torch.Tensor]:
    with ak.use_backend("native"), ak.count_calls() as calls:
        out = outputs(case.operator(*args))
    assert calls[case.operator.name, "native"] == 1
    return out


def widened(args: tuple) -> tuple:
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def assert_close(case: Case, args: tuple, got: list[torch.Tensor]) -> None:
    exact, own = outputs(case.operator.reference(*widened(args))), outputs(case.operator.reference(*args))
    for result, wide, torch_result in zip(got, exact, own):
        assert result.dtype == torch_result.dtype and result.shape == torch_result.shape
        one_by_one = torch.finfo(torch.float32).eps * args[0].shape[-1] ** 0.5  # the scalar version's sums
        floor = (torch.finfo(result.dtype).eps + one_by_one) * wide.abs().max()
        bound = 2 * (torch_result - wide).abs().max() + floor
        used = ((result - wide).abs().max() / bound).item()
        print(f"{case.name}: {100 * used:.0f} % of the error budget")
        assert used <= 1  # NaN fails too


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_agrees_with_reference(case, dtype, isa, poison):
    args = build(case, dtype)
    assert_close(case, args, run(case, args))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[1::3], ids=repr)
def test_unaligned_and_strided_inputs_change_nothing(case, dtype, isa):
    def awkward(tensor):
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return tensor
        if case.operator is ak.paged_attention and tensor.dim() == 4:  # the cache is contiguous by contract
            return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)
        wide = torch.stack((tensor, torch.full_like(tensor, torch.nan)), dim=-1)
        return wide[..., 0]

    args = build(case, dtype)
    for plain, strided in zip(run(case, args), run(case, tuple(map(awkward, args)))):
        assert torch.equal(plain, strided)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_threads_change_no_bit(case, dtype, isa, with_threads):
    args = build(case, dtype)
    one = with_threads(1, lambda: run(case, args))
    for count in (2, 3):
        for a, b in zip(one, with_threads(count, lambda: run(case, args))):
            assert torch.equal(a, b)


def rope_arguments(dtype: torch.dtype, rows: int = 4, heads: int = 14, kv_heads: int = 2, dim: int = 24) -> tuple:
    torch.manual_seed(3)
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim).to(dtype)
    positions, slots = torch.tensor([0, 5, 77, 3])[:rows], torch.tensor([3, 50, 127, 64])[:rows]
    angles = torch.randn(100, dim // 2)
    caches = [torch.full((8, 16, kv_heads, dim), 9.0, dtype=dtype) for _ in range(2)]
    return qkv, positions, angles.cos(), angles.sin(), slots, *caches, heads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_cache_writes_its_slots_and_nothing_else(dtype, isa, poison, with_threads):
    expected = rope_arguments(dtype)
    q = ak.rope_cache.reference(*expected)
    for count in (1, 2, 3):
        args = rope_arguments(dtype)
        with ak.use_backend("native"):
            out = with_threads(count, lambda args=args: ak.rope_cache(*args))
        for a, b in ((out, q), (args[5], expected[5]), (args[6], expected[6])):
            torch.testing.assert_close(a, b, rtol=torch.finfo(dtype).eps, atol=1e-6)
        untouched = torch.ones(128, dtype=torch.bool)
        untouched[args[4]] = False
        assert (args[5].view(128, -1)[untouched] == 9).all() and (args[6].view(128, -1)[untouched] == 9).all()


def test_attention_of_a_decoding_row_is_the_same_beside_a_prefill_chunk(isa):
    case = attention([33, 20], 14, 2, 64)
    q, k, v, tables, _, lens, _, scale = build(case, torch.bfloat16)
    mixed = torch.cat((q[:1], torch.randn(4, 14, 64).to(q.dtype)))
    starts = torch.tensor([0, 1, 5], dtype=torch.int32)
    with ak.use_backend("native"):
        alone = ak.paged_attention(q[:1], k, v, tables[:1], torch.tensor([0, 1], dtype=torch.int32), lens[:1], 1, scale)
        both = ak.paged_attention(mixed, k, v, tables, starts, lens, 4, scale)
    assert torch.equal(alone[0], both[0])
    exact = ak.paged_attention.reference(*(t.double() for t in (mixed, k, v)), tables, starts, lens, 4, scale)
    assert (both - exact).abs().max() < 0.02
