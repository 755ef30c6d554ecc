"""A whole decode step of the dual-head model as one native call: weights, pages and buffers are bound once.

The same kernels in the same order as the operators, so logits are equal to theirs bit for bit; what is saved is the
way through Python and the dispatcher, ten operators a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import operator
from ..linear import linear
from ..linear_weight import LinearWeight
from .arguments import DTYPES
from .linear import MAX_ROWS


class Layer(Protocol):
    """Weights of one Qwen2 layer with a leading branch dimension, as ``linear`` and ``rms_norm`` take them."""

    input_norm: Tensor
    qkv: LinearWeight
    output: LinearWeight
    post_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight
    num_heads: int
    eps: float


class Model(Protocol):
    """What the step binds: layers of the trunk and of both branches (text first), heads, embedding, rotary tables."""

    trunk: Sequence[Layer]
    upper: Sequence[Layer]
    embed_table: Tensor
    final_norm: Tensor
    lm_head: LinearWeight
    audio_head: LinearWeight
    rotary: tuple[Tensor, Tensor]


class Attention(Protocol):
    """Rows of one attention launch (see ``rope_cache`` and ``paged_attention`` for the tensors)."""

    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    max_seqlen_q: int


class Layout(Protocol):
    """One step's rows: which enter the branches, and which of those want logits; text rows first in both."""

    trunk: Attention
    upper: Attention
    upper_rows: Tensor
    split: int
    head_rows: Tensor
    head_split: int


def available_for(model: Model, kv_trunk: Tensor, kv_upper: Tensor) -> bool:
    """True if the model and its pages are contiguous CPU tensors of one native dtype, none of them quantised."""
    dtype = model.embed_table.dtype
    tensors = [model.embed_table, model.final_norm, model.lm_head.weight, model.audio_head.weight, kv_trunk, kv_upper]
    for layer in (*model.trunk, *model.upper):
        tensors += _weights(layer)
    return dtype in DTYPES and all(t.dtype == dtype and t.is_contiguous() and t.device.type == "cpu" for t in tensors)


class DecodeStep:
    """Bound to one model and its pages; keeps them alive. Check :func:`available_for` first.

    Args:
        num_text_layers, num_audio_layers: how many of ``model.upper`` each branch runs.
        kv_trunk, kv_upper: [layers, 2, pages, page_size, num_kv_heads, head_dim].
    """

    def __init__(self, model: Model, kv_trunk: Tensor, kv_upper: Tensor, num_text_layers: int, num_audio_layers: int):
        from .. import _native

        self._keep = (model, kv_trunk, kv_upper)
        self._dtype, self._vocabulary = model.embed_table.dtype, model.lm_head.num_outputs
        first = model.trunk[0]
        page_size, num_kv_heads, head_dim = kv_trunk.shape[3:]
        hidden, intermediate = model.embed_table.shape[1], first.down.num_inputs
        sizes = [hidden, intermediate, first.num_heads, num_kv_heads, head_dim, page_size, self._vocabulary]
        heads = (model.lm_head.weight, model.audio_head.weight)
        tensors = (model.embed_table, model.final_norm, *heads, *model.rotary)
        self._step = _native.DecodeStep(
            DTYPES[self._dtype],
            [*sizes, num_text_layers, num_audio_layers],
            first.eps,
            [t.data_ptr() for t in tensors],
            [_addresses(layer, kv) for layer, kv in zip(model.trunk, kv_trunk)],
            [_addresses(layer, kv) for layer, kv in zip(model.upper, kv_upper)],
        )

    def fits(self, layout: Layout) -> bool:
        """True if every sequence has one row, no part has more than 16, and the native backend is in use."""
        if linear.backends("cpu")[0] != "native":
            return False
        split, upper = layout.split, layout.upper_rows.shape[0]
        rows = max(layout.trunk.positions.shape[0], split, upper - split)
        return 0 < rows <= MAX_ROWS and max(layout.trunk.max_seqlen_q, layout.upper.max_seqlen_q) == 1

    def __call__(self, audio_ids: Tensor, text_ids: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Ids int64 [T] → text logits [head_split, V] and audio logits [n - head_split, V] of the wanted rows."""
        if operator.counting:
            operator.calls["decode_step", "native"] += 1
        text = torch.empty(layout.head_split, self._vocabulary, dtype=self._dtype)
        audio = torch.empty(layout.head_rows.shape[0] - layout.head_split, self._vocabulary, dtype=self._dtype)
        trunk, upper = _contiguous(layout.trunk), _contiguous(layout.upper)
        ids = (audio_ids.contiguous(), text_ids.contiguous())
        self._step.run(
            ids[0].data_ptr(),
            ids[1].data_ptr(),
            _describe(trunk),
            _describe(upper),
            layout.upper_rows.data_ptr(),
            layout.split,
            layout.head_rows.data_ptr(),
            layout.head_rows.shape[0],
            layout.head_split,
            text.data_ptr(),
            audio.data_ptr(),
        )
        return text, audio


def _weights(layer: Layer) -> list[Tensor]:
    return [
        layer.input_norm,
        layer.qkv.weight,
        layer.qkv.bias,
        layer.output.weight,
        layer.post_norm,
        layer.gate_up.weight,
        layer.down.weight,
    ]


def _addresses(layer: Layer, kv: Tensor) -> tuple[int, list[int]]:
    return layer.input_norm.shape[0], [t.data_ptr() for t in (*_weights(layer), kv[0], kv[1])]


def _contiguous(a: Attention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return a.positions.contiguous(), a.slots.contiguous(), a.block_tables.contiguous(), a.seq_lens.contiguous()


def _describe(tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[int]:
    positions, _, tables, _ = tensors
    return [positions.shape[0], tables.shape[1], *(t.data_ptr() for t in tensors)]
