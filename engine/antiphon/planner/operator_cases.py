"""One list of operator calls, of the 7B model or of a toy: what is compiled, what is timed, what is checked on a GPU.

A case builds its arguments on any device: on ``meta`` to record the launches, on a CPU for the rehearsal, on a GPU for the
acceptance run. Bytes are what the call must move at least (inputs that it needs once, results once), operations are
multiplications and additions of matrix products and attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from antiphon_kernels.vq_nearest import squared_norms

PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of the batches that the cases form."""

    hidden: int = 3584
    intermediate: int = 18944
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    vocabulary: int = 168448
    context: int = 1500
    rows: tuple[int, ...] = (1, 16, 64, 512)
    dit_hidden: int = 2304
    dit_heads: int = 18
    window: int = 900
    chunk: int = 168
    mels: int = 80
    vocoder: tuple[tuple[int, int], ...] = ((1024, 420), (64, 16800), (32, 80640))
    encoder_heads: int = 20
    encoder_rows: int = 1500
    codes: int = 16384
    code_width: int = 1280


FULL = Sizes()
TOY = Sizes(
    hidden=256, intermediate=128, heads=4, kv_heads=2, head_dim=64, vocabulary=5000, context=70, rows=(1, 17, 65),
    dit_hidden=64, dit_heads=4, window=40, chunk=20, vocoder=((3, 70), (2, 600)), encoder_heads=2, encoder_rows=70, codes=1100,
    code_width=64,
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """Arguments of one operator call with the least bytes and the operations that it takes."""

    args: tuple
    bytes: int
    operations: int = 0


@dataclass(frozen=True)
class Case:
    """One call of ``operator``; ``build(maker)`` makes the arguments. ``exact``: results are ints and must be equal.

    ``rounding``: what an implementation may round beyond its dtype, relative to the largest true value.
    """

    operator: str
    label: str
    build: Callable[[Maker], Call]
    exact: bool = False
    rounding: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.operator}[{self.label}]"


class Maker:
    """Random tensors of one dtype on one device; the same seed gives the same case."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype = torch.bfloat16, seed: int = 0):
        self.device, self.dtype = torch.device(device), dtype
        self.generator = None if self.device.type == "meta" else torch.Generator(self.device).manual_seed(seed)

    def values(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        x = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return x if self.device.type == "meta" else x.normal_(0, scale, generator=self.generator)

    def weight(self, *shape: int) -> Tensor:
        """Scaled by its inputs, so that results are O(1)."""
        return self.values(*shape, scale=shape[-1] ** -0.5)

    def ids(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        return torch.randint(0, high, shape, dtype=dtype, device=self.device, generator=self.generator)

    def of(self, data: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(data, dtype=dtype).to(self.device)

    def angles(self, positions: int, half: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(positions)[:, None] * 10.0 ** -torch.linspace(0, 5, half)
        return angle.cos().to(self.device), angle.sin().to(self.device)


def num_bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def cases(sizes: Sizes = FULL) -> list[Case]:
    """All cases, in the order of a step: input, layers, heads, sampling, then the speech side and the encoders."""
    return [*_small_operators(sizes), *_linears(sizes), *_attention(sizes), *_sampling(sizes), *_flow(sizes), *_sound(sizes)]


def _small_operators(s: Sizes) -> Iterator[Case]:
    for rows in s.rows:
        yield Case("dual_embed", f"T={rows}", lambda m, n=rows: _embed(m, s, n))
        yield Case("rms_norm", f"T={rows}", lambda m, n=rows: _norm(m, s, n))
        yield Case("add_rms_norm", f"T={rows}", lambda m, n=rows: _add_norm(m, s, n))
        yield Case("silu_mul", f"T={rows}", lambda m, n=rows: _silu(m, s, n))
        yield Case("rope_cache", f"T={rows}", lambda m, n=rows: _rope(m, s, n))


def _embed(m: Maker, s: Sizes, n: int) -> Call:
    table, features = m.values(s.vocabulary, s.hidden), m.values(3, s.hidden)
    args = (m.ids(s.vocabulary, n), m.ids(s.vocabulary, n), table, features, m.ids(4, n) - 1)
    return Call(args, 3 * n * s.hidden * table.element_size())


def _norm(m: Maker, s: Sizes, n: int) -> Call:
    x, weight = m.values(n, s.hidden), m.values(1, s.hidden)
    return Call((x, weight, n, 1e-6), num_bytes(x, x, weight))


def _add_norm(m: Maker, s: Sizes, n: int) -> Call:
    x, residual, weight = m.values(n, s.hidden), m.values(n, s.hidden), m.values(1, s.hidden)
    return Call((x, residual, weight, n, 1e-6), num_bytes(x, residual, x, residual, weight))


def _silu(m: Maker, s: Sizes, n: int) -> Call:
    x = m.values(n, 2 * s.intermediate)
    return Call((x,), num_bytes(x) * 3 // 2)


def _rope(m: Maker, s: Sizes, n: int) -> Call:
    qkv = m.values(n, (s.heads + 2 * s.kv_heads) * s.head_dim)
    caches = (m.values(2 + n // PAGE, PAGE, s.kv_heads, s.head_dim) for _ in range(2))
    slots = torch.arange(n).flip(0).to(m.device)
    args = (qkv, m.ids(s.context, n), *m.angles(s.context, s.head_dim // 2), slots, *caches, s.heads)
    return Call(args, 2 * num_bytes(qkv))


def _linears(s: Sizes) -> Iterator[Case]:
    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    shapes = {"qkv": (qkv, s.hidden), "o": (s.hidden, s.hidden), "down": (s.hidden, s.intermediate)}
    gate_up = (2 * s.intermediate, s.hidden)
    for rows in (s.rows[0], *s.rows[-2:]):
        for name, shape in (*shapes.items(), ("head", (s.vocabulary, s.hidden))):
            if name != "head" or rows <= 64:
                yield Case("linear", f"{name},T={rows}", lambda m, n=rows, w=shape, b=name == "qkv": _linear(m, n, w, b))
        yield Case("linear_silu_mul", f"T={rows}", lambda m, n=rows: _gated(m, s, n))
        for operator in ("linear_int8", "linear_int4", "linear_fp8"):
            for name, shape in shapes.items():
                yield Case(operator, f"{name},T={rows}", lambda m, n=rows, w=shape, o=operator: _quantised(m, n, w, o))
            yield Case(
                f"{operator}_silu_mul", f"T={rows}", lambda m, n=rows, o=operator: _quantised(m, n, gate_up, o, gated=True)
            )
    rows = s.rows[-2]
    yield Case("linear", f"both branches,T={rows}", lambda m: _linear(m, rows, shapes["o"], False, rows // 3))


def _linear(m: Maker, n: int, shape: tuple[int, int], with_bias: bool, split: int | None = None) -> Call:
    branches = 1 if split is None else 2
    x, weight = m.values(n, shape[1]), m.weight(branches, *shape)
    bias = m.values(branches, shape[0]) if with_bias else None
    moved = num_bytes(x, weight, bias) + n * shape[0] * x.element_size()
    return Call((x, weight, bias, n if split is None else split), moved, 2 * n * shape[0] * shape[1])


def _gated(m: Maker, s: Sizes, n: int) -> Call:
    x, weight = m.values(n, s.hidden), m.weight(1, 2 * s.intermediate, s.hidden)
    moved = num_bytes(x, weight) + n * s.intermediate * x.element_size()
    return Call((x, weight, n), moved, 4 * n * s.intermediate * s.hidden)


def _quantised(m: Maker, n: int, shape: tuple[int, int], operator: str, gated: bool = False) -> Call:
    outputs, inputs = shape
    x = m.values(n, inputs)
    scale = m.ids(2, 1, outputs).float() * 0.01 / inputs**0.5 + 0.01 / inputs**0.5
    if operator == "linear_int8":
        weight = m.ids(255, 1, outputs, inputs, dtype=torch.uint8).view(torch.int8)
    elif operator == "linear_int4":
        weight = m.ids(256, 1, outputs, inputs // 2, dtype=torch.uint8)
        scale = (m.ids(2, 1, inputs // 128, outputs) + 1).to(torch.bfloat16) * 0.1 / inputs**0.5
    else:
        weight = m.values(1, outputs, inputs, dtype=torch.float32 if inputs < 1024 else m.dtype).to(torch.float8_e4m3fn)
        scale = scale * 30
    moved = num_bytes(x, weight, scale) + n * outputs // (1 + gated) * x.element_size()
    args = (x, weight, scale, n) if gated else (x, weight, scale, None, n)
    return Call(args, moved, 2 * n * outputs * inputs)


def _attention(s: Sizes) -> Iterator[Case]:
    long = s.rows[-1]
    batches = {
        "decode,S=1": [(1, s.context)],
        f"decode,S={s.rows[-2]}": [(1, s.context - 7 * i % s.context) for i in range(s.rows[-2])],
        f"prefill,T={long}": [(long, long)],
        "mixed": [(1, s.context), (long // 2, s.context), (1, 3), (long // 4, long)],
    }
    for label, sequences in batches.items():
        yield Case("paged_attention", label, lambda m, b=sequences: _paged(m, s, b))


def _paged(m: Maker, s: Sizes, sequences: list[tuple[int, int]]) -> Call:
    used = [-(-max(length, n) // PAGE) for n, length in sequences]
    lengths = [max(length, n) for n, length in sequences]
    table = torch.zeros(len(sequences), max(used), dtype=torch.int32)
    order = torch.randperm(sum(used), generator=torch.Generator().manual_seed(0)).int()
    for i, pages in enumerate(order.split(used)):
        table[i, : used[i]] = pages
    k, v = (m.values(sum(used), PAGE, s.kv_heads, s.head_dim) for _ in range(2))
    rows = [n for n, _ in sequences]
    q = m.values(sum(rows), s.heads, s.head_dim)
    cu = torch.tensor([0, *rows]).cumsum(0).int().to(m.device)
    args = (q, k, v, table.to(m.device), cu, m.of(lengths, torch.int32), max(rows), s.head_dim**-0.5)
    seen = sum(n * length - n * (n - 1) // 2 for n, length in zip(rows, lengths))
    read = 2 * sum(lengths) * s.kv_heads * s.head_dim * q.element_size()
    return Call(args, 2 * num_bytes(q) + read, 4 * seen * s.heads * s.head_dim)


def _sampling(s: Sizes) -> Iterator[Case]:
    for rows in (1, s.rows[-2]):
        for label, k in (("greedy", None), ("top-5", 5), ("unlimited", 0)):
            yield Case("sample_tokens", f"{label},R={rows}", lambda m, n=rows, k=k: _sample(m, s, n, k), exact=True)
        yield Case("advance_streams", f"R={rows}", lambda m, n=rows: _advance(m, s, n), exact=True)
        yield Case("decode_inputs", f"R={rows}", lambda m, n=rows: _decode_inputs(m, s, n), exact=True)


def _sample(m: Maker, s: Sizes, n: int, k: int | None) -> Call:
    logits = m.values(n, s.vocabulary, scale=3.0)
    history = m.ids(s.vocabulary, n, 128, dtype=torch.int32)
    lengths, slots = torch.full((n,), 100).to(m.device), torch.arange(n).to(m.device)

    def column(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((n, 2), value, dtype=dtype).to(m.device)[:, 0]

    settings = (
        column(0.0 if k is None else 0.9, torch.float32), column(k or 0, torch.int64), column(1.1, torch.float32),
        column(16, torch.int64),
    )  # fmt: skip
    return Call((logits, history, lengths, slots, *settings, m.ids(2**40, n), 1), num_bytes(logits))


def _advance(m: Maker, s: Sizes, n: int) -> Call:
    histories = (torch.zeros(n, 128, dtype=torch.int32).to(m.device) for _ in range(2))
    counts = m.ids(100, n)
    flags = [m.ids(2, n).bool() for _ in range(2)]
    state = (*histories, counts, flags[0], torch.zeros_like(counts), flags[1], counts + 3)
    args = (m.ids(9, n), m.ids(9, n), torch.arange(n).to(m.device), *state, [3, 4, 1, 2, 6])
    return Call(args, n * 80)


def _decode_inputs(m: Maker, s: Sizes, n: int) -> Call:
    """Rows of slots n-1 … 0; the last row is idle, every third request has stopped."""
    width = -(-s.context // PAGE)
    slots = torch.tensor([*range(n - 1, 0, -1), n]).to(m.device)
    runs = m.ids(2, 2, n).bool()
    tables, spare = m.ids(1000, 3, n, width, dtype=torch.int32), m.of([1000, 1001, 1001], torch.int64)
    histories = (m.ids(s.vocabulary, n + 1, 128, dtype=torch.int32) for _ in range(2))
    stop = (torch.arange(n + 1) % 3 == 2).to(torch.int64).to(m.device)
    args = (slots, m.ids(s.context // 2, n), runs, tables, spare, *histories, m.ids(30, n + 1) + 1, stop, PAGE, 3)
    return Call(args, n * 110)


def _flow(s: Sizes) -> Iterator[Case]:
    for streams in (1, 4):
        label = f"S={streams}"
        rows = streams * s.chunk
        yield Case("layer_norm_modulate", label, lambda m, n=rows: _modulate(m, s, n))
        yield Case("gate_residual", label, lambda m, n=rows: _gate(m, s, n))
        yield Case("flow_rope", label, lambda m, n=rows: _flow_rope(m, s, n))
        yield Case("flow_attention", label, lambda m, n=streams: _flow_attention(m, s, n))
        yield Case("euler_step", label, lambda m, n=rows: _euler(m, s, n))


def _modulate(m: Maker, s: Sizes, n: int) -> Call:
    x, packed = m.values(n, s.dit_hidden), m.values(n // 4, 6 * s.dit_hidden)
    shift, scale = packed.chunk(6, dim=-1)[:2]
    return Call((x, shift, scale, 4, 1e-6), num_bytes(x, x, shift, scale))


def _gate(m: Maker, s: Sizes, n: int) -> Call:
    x, y, packed = m.values(n, s.dit_hidden), m.values(n, s.dit_hidden), m.values(n // 4, 6 * s.dit_hidden)
    gate = packed.chunk(6, dim=-1)[2]
    return Call((x, y, gate, 4), num_bytes(x, x, y, gate))


def _flow_rope(m: Maker, s: Sizes, n: int) -> Call:
    qkv = m.values(n, 3 * s.dit_hidden)
    tables = m.angles(4096, s.dit_hidden // s.dit_heads // 2)
    return Call((qkv, m.ids(4096, n), *tables, s.dit_heads), 2 * num_bytes(qkv))


def _flow_attention(m: Maker, s: Sizes, streams: int) -> Call:
    rows, shape = streams * s.chunk, (s.dit_heads, s.dit_hidden // s.dit_heads)
    q, k, v = (m.values(rows, *shape) for _ in range(3))
    caches = [m.values(streams + 1, s.window, *shape) for _ in range(2)]
    lengths = [s.window * (i + 1) // streams for i in range(streams)]
    cu = m.of([s.chunk * i for i in range(streams + 1)], torch.int32)
    slots = torch.arange(streams).flip(0).to(m.device)
    args = (q, k, v, cu, *caches, slots, m.of(lengths, torch.int32), s.chunk, shape[1] ** -0.5)
    read = 2 * sum(lengths) * s.dit_hidden * q.element_size()
    seen = sum(s.chunk * (n + s.chunk) for n in lengths)
    return Call(args, num_bytes(q, q, k, v) + read, 4 * seen * s.dit_hidden)


def _euler(m: Maker, s: Sizes, n: int) -> Call:
    x = m.values(n, s.mels)
    return Call((x, m.values(n, s.mels), 1 / 29), 3 * num_bytes(x))


def _sound(s: Sizes) -> Iterator[Case]:
    for channels, length in s.vocoder:
        yield Case("alias_free_snake", f"C={channels},T={length}", lambda m, c=channels, n=length: _snake(m, c, n))
    yield Case("encoder_attention", "whisper", lambda m: _encoder(m, s, 0, m.dtype))
    yield Case("encoder_attention", "glm", lambda m: _encoder(m, s, 200, torch.float32))
    yield Case("vq_nearest", "glm", lambda m: _nearest(m, s), exact=True)


def _snake(m: Maker, channels: int, length: int) -> Call:
    x, filters = m.values(1, channels, length), m.values(2, 12, dtype=torch.float32, scale=0.3)
    alpha, inv_beta = (m.values(channels, dtype=torch.float32).abs() + 0.1 for _ in range(2))
    return Call((x, alpha, inv_beta, filters[0], filters[1].clone()), 2 * num_bytes(x), 60 * x.numel())


def _encoder(m: Maker, s: Sizes, block: int, dtype: torch.dtype) -> Call:
    qkv = m.values(2, s.encoder_rows, 3, s.encoder_heads, 64, dtype=dtype)
    args = (*qkv.unbind(2), m.of([s.encoder_rows, s.encoder_rows // 2], torch.int64), block)
    return Call(args, num_bytes(qkv) * 4 // 3, 8 * s.encoder_rows**2 * s.encoder_heads * 64)


def _nearest(m: Maker, s: Sizes) -> Call:
    n = s.encoder_rows // 4
    x, codebook = (m.values(rows, s.code_width, dtype=torch.float32) for rows in (n, s.codes))
    norms = squared_norms(codebook)
    return Call((x, codebook, norms), num_bytes(x, codebook, norms) + 8 * n, 2 * n * s.codes * s.code_width)
