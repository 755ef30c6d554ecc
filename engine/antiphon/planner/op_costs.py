"""What one operator call must move and compute: bytes to and from device memory, and floating-point operations.

Every tensor is counted once per read and once per write, at the size the call really touches: rows of a table that are
gathered, weights of a branch that has rows, pages of the sequences in the step. Reuse inside a kernel is taken for granted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SPLIT_KEYS = 256
SNAKE_CONTEXT = 5
SNAKE_TILE = 1024
SAMPLE_CHUNK = 4096
SAMPLE_KEPT = 64


@dataclass(frozen=True)
class Cost:
    """Bytes moved and operations done; ``reads_once`` of the bytes are weights and caches."""

    num_bytes: int
    flops: int = 0


@dataclass
class Lengths:
    """What attention's cost depends on and fake tensors do not hold, by the number of sequences in the call.

    ``llm``: rows of each sequence and its context including them. ``flow``: rows of each stream and its cached rows.
    """

    llm: dict[int, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)
    flow: dict[int, tuple[Sequence[int], Sequence[int]]] = field(default_factory=dict)


def size(*values: Any) -> int:
    """Bytes of all tensors in nested arguments."""
    return sum(t.numel() * t.element_size() for t in tensors(values))


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(values, Tensor):
        return [values]
    return [t for v in values for t in tensors(v)] if isinstance(values, (list, tuple)) else []


def operator_cost(name: str, args: tuple, out: Any, lengths: Lengths) -> Cost:
    """Cost of ``torch.ops.antiphon.<name>``; without a rule of its own: every argument once, every result once."""
    rule = _OPERATORS.get(name)
    return rule(args, out, lengths) if rule else Cost(size(args, out), 2 * _numel(out))


def aten_cost(name: str, args: tuple, out: Any) -> Cost:
    """Cost of a PyTorch operator that starts a kernel."""
    rule = _ATEN.get(name)
    if rule:
        return rule(args, out)
    return Cost(size(args, out), _numel(out))


def _numel(out: Any) -> int:
    return sum(t.numel() for t in tensors(out))


def _branches_used(weight: Tensor, rows: int, split: int) -> int:
    """Branches of a weight that have rows."""
    return 1 if weight.shape[0] == 1 else (split > 0) + (split < rows)


def _weight_bytes(weight: Tensor | None, rows: int, split: int) -> int:
    return 0 if weight is None else size(weight) // weight.shape[0] * _branches_used(weight, rows, split)


def _linear(args: tuple, out: Tensor, _: Lengths) -> Cost:
    x, weight, bias, split = args
    rows = x.shape[0]
    moved = size(x, out) + _weight_bytes(weight, rows, split) + _weight_bytes(bias, rows, split)
    return Cost(moved, 2 * rows * weight.shape[1] * weight.shape[2])


def _linear_quantised(args: tuple, out: Tensor, _: Lengths) -> Cost:
    x, weight, scale, bias, split = args
    rows = x.shape[0]
    weights = sum(_weight_bytes(t, rows, split) for t in (weight, scale, bias))
    return Cost(size(x, out) + weights, 2 * rows * x.shape[1] * out.shape[1])


def _linear_compact(args: tuple, out: Tensor, _: Lengths) -> Cost:
    """12 bits a weight, and the codes' share of the branches with rows."""
    x, weight, codes, bias, split = args
    rows = x.shape[0]
    weights = size(weight, codes) // weight.shape[0] * _branches_used(weight, rows, split)
    moved = size(x, out) + weights + _weight_bytes(bias, rows, split)
    return Cost(moved, 2 * rows * x.shape[1] * out.shape[1])


def _linear_panels(args: tuple, out: Tensor, _: Lengths) -> Cost:
    x, panels, bias = args
    return Cost(size(x, panels, bias, out), 2 * out.numel() * x.shape[1])


def _linear_fp8(args: tuple, out: Tensor, lengths: Lengths) -> Cost:
    """With the rows in 8 bits, written and read once."""
    cost = _linear_quantised(args, out, lengths)
    return Cost(cost.num_bytes + 2 * args[0].numel(), cost.flops)


def _linear_silu_mul(args: tuple, out: Tensor, _: Lengths) -> Cost:
    x, weight, split = args
    return Cost(size(x, out) + _weight_bytes(weight, x.shape[0], split), 2 * x.shape[0] * math.prod(weight.shape[1:]))


def _linear_quantised_silu_mul(args: tuple, out: Tensor, lengths: Lengths) -> Cost:
    """Both halves of the matrix, half as many results."""
    x, weight, scale, split = args
    cost = _linear_quantised((x, weight, scale, None, split), out, lengths)
    return Cost(cost.num_bytes, 2 * cost.flops)


def _linear_fp8_silu_mul(args: tuple, out: Tensor, lengths: Lengths) -> Cost:
    """With the rows in 8 bits, written and read once."""
    cost = _linear_quantised_silu_mul(args, out, lengths)
    return Cost(cost.num_bytes + 2 * args[0].numel(), cost.flops)


def _decode_inputs(args: tuple, out: Any, _: Lengths) -> Cost:
    """Three entries of the block tables, of the state and of the histories per row."""
    slots, base, runs = args[:3]
    return Cost(size(slots, base, runs, out) + slots.shape[0] * (3 * 4 + 2 * 4 + 2 * 8), 0)


def _rms_norm(args: tuple, out: Any, _: Lengths) -> Cost:
    *inputs, weight, split, _eps = args
    rows = inputs[0].shape[0]
    return Cost(size(inputs, out) + _weight_bytes(weight, rows, split), 4 * inputs[0].numel())


def _dual_embed(args: tuple, out: Tensor, _: Lengths) -> Cost:
    audio_ids, text_ids, _table, features, feature_rows = args
    return Cost(3 * size(out) + size(audio_ids, text_ids, feature_rows, features), 2 * out.numel())


def _rope_cache(args: tuple, out: Tensor, _: Lengths) -> Cost:
    qkv, positions, cos, _sin, slots = args[:5]
    angles = 2 * qkv.shape[0] * cos.shape[1] * cos.element_size()
    return Cost(2 * size(qkv) + angles + size(positions, slots), 3 * qkv.numel())


def _paged_attention(args: tuple, out: Tensor, lengths: Lengths) -> Cost:
    q, k_cache, _, block_tables, cu_seqlens, seq_lens = args[:6]
    rows, contexts = lengths.llm[seq_lens.shape[0]]
    heads, head_dim = q.shape[1:]
    kv_heads = k_cache.shape[2]
    keys = 2 * sum(contexts) * kv_heads * head_dim * k_cache.element_size()
    group = max(16, 1 << (heads // kv_heads - 1).bit_length())
    splits = [math.ceil(c / SPLIT_KEYS) for r, c in zip(rows, contexts, strict=True) if r == 1]
    partial = 2 * sum(n for n in splits if n > 1) * kv_heads * group * (head_dim + 2) * 4
    pairs = sum(r * (2 * c - r + 1) // 2 for r, c in zip(rows, contexts, strict=True))
    return Cost(size(q, out, cu_seqlens, seq_lens) + keys + partial + size(block_tables), 4 * pairs * heads * head_dim)


def _flow_attention(args: tuple, out: Tensor, lengths: Lengths) -> Cost:
    q, k, v, cu_seqlens = args[:4]
    rows, cached = lengths.flow[cu_seqlens.shape[0] - 1]
    width = q.shape[1] * q.shape[2]
    pairs = sum(r * (r + c) for r, c in zip(rows, cached, strict=True))
    return Cost(size(q, k, v, out) + 2 * sum(cached) * width * k.element_size(), 4 * pairs * width)


def _sample_tokens(args: tuple, out: Tensor, _: Lengths) -> Cost:
    logits = args[0]
    parts = logits.shape[0] * math.ceil(logits.shape[1] / SAMPLE_CHUNK) * SAMPLE_KEPT * 8
    return Cost(size(logits, out) + 2 * parts, 32 * logits.numel())


def _advance_streams(args: tuple, out: Any, _: Lengths) -> Cost:
    return Cost(size(args[:3], out) + args[2].shape[0] * 64)


def _snake(args: tuple, out: Tensor, _: Lengths) -> Cost:
    x = args[0]
    tiles = math.ceil(x.shape[-1] / SNAKE_TILE)
    halo = 2 * SNAKE_CONTEXT * (tiles - 1) * x.shape[0] * x.shape[1] * x.element_size()
    return Cost(size(x, out) + halo + size(args[1:]), 80 * x.numel())


def _layer_norm_modulate(args: tuple, out: Tensor, _: Lengths) -> Cost:
    return Cost(size(args[:3], out), 8 * out.numel())


def _vq_nearest(args: tuple, out: Tensor, _: Lengths) -> Cost:
    x, codebook, norms = args
    return Cost(size(x, codebook, norms, out), 2 * x.shape[0] * codebook.numel())


def _encoder_attention(args: tuple, out: Tensor, _: Lengths) -> Cost:
    q = args[0]
    return Cost(size(args[:3], out), 4 * q.numel() * q.shape[1])


_OPERATORS: dict[str, Callable[[tuple, Any, Lengths], Cost]] = {
    "linear": _linear,
    "linear_silu_mul": _linear_silu_mul,
    "linear_compact": _linear_compact,
    "linear_panels": _linear_panels,
    "linear_int8": _linear_quantised,
    "linear_int4": _linear_quantised,
    "linear_fp8": _linear_fp8,
    "linear_int8_silu_mul": _linear_quantised_silu_mul,
    "linear_int4_silu_mul": _linear_quantised_silu_mul,
    "linear_fp8_silu_mul": _linear_fp8_silu_mul,
    "decode_inputs": _decode_inputs,
    "rms_norm": _rms_norm,
    "add_rms_norm": _rms_norm,
    "dual_embed": _dual_embed,
    "rope_cache": _rope_cache,
    "paged_attention": _paged_attention,
    "flow_attention": _flow_attention,
    "sample_tokens": _sample_tokens,
    "advance_streams": _advance_streams,
    "alias_free_snake": _snake,
    "layer_norm_modulate": _layer_norm_modulate,
    "vq_nearest": _vq_nearest,
    "encoder_attention": _encoder_attention,
}


def _addmm(args: tuple, out: Tensor) -> Cost:
    bias, a, b = args[:3]
    return Cost(size(bias, a, b, out), 2 * out.numel() * a.shape[-1])


def _mm(args: tuple, out: Tensor) -> Cost:
    a, b = args[:2]
    return Cost(size(a, b, out), 2 * out.numel() * a.shape[-1])


def _convolution(args: tuple, out: Tensor) -> Cost:
    x, weight, transposed = args[0], args[1], args[6]
    taps = math.prod(weight.shape[1:])
    # transposed: every input sample meets every tap of every result channel once
    return Cost(size(args[:3], out), 2 * (x if transposed else out).numel() * taps)


def _gather(args: tuple, out: Tensor) -> Cost:
    return Cost(2 * size(out) + size(args[1:]))


def _write(args: tuple, out: Any) -> Cost:
    """Writes its first argument without reading it: the rest is read."""
    return Cost(size(args), 0)


def _scatter(args: tuple, out: Any) -> Cost:
    """Rows of the last tensor go to places of the first."""
    given = tensors(args[1:])
    return Cost(size(given) + size(given[-1]))


_ATEN: dict[str, Callable[[tuple, Any], Cost]] = {
    "addmm": _addmm,
    "mm": _mm,
    "bmm": _mm,
    "convolution": _convolution,
    "index": _gather,
    "index_select": _gather,
    "embedding": lambda args, out: Cost(2 * size(out) + size(args[1])),
    "gather": _gather,
    "copy_": _write,
    "fill_": _write,
    "zero_": _write,
    "index_put_": _scatter,
    "index_copy_": _scatter,
    "_fft_r2c": lambda args, out: Cost(size(args, out), 12 * out.numel()),
}


def is_free(func: torch._ops.OpOverload) -> bool:
    """Views and allocations: no kernel."""
    return func.is_view or func._schema.name.partition("::")[2] in _FREE


_FREE = {
    "_unsafe_view", "alias", "detach", "lift_fresh", "lift_fresh_copy", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "split_with_sizes", "resize_", "set_", "_reshape_alias",
}  # fmt: skip
