"""A whole step of the dual-head model, decodes and prompts, as one native call: weights, pages and buffers are bound once.

The same kernels in the same order as the operators, so logits are equal to theirs bit for bit; what is saved is the
way through Python and the dispatcher, ten operators a layer, and waking threads as often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .. import operator
from ..linear import linear
from ..linear_weight import LinearWeight
from . import MAX_STEP_ROWS
from .arguments import DTYPES, pointer
from .linear import MAX_ROWS, takes_many
from .linear_compact import runs_wide
from .linear_quantized import max_rows

FORMATS = {"plain": 0, "int8": 1, "int4": 2, "compact": 3}
"""The Format enum of the C++ side."""


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
    cu_seqlens_q: Tensor
    seq_lens: Tensor


class Layout(Protocol):
    """One step's rows: which enter the branches, and which of those want logits; text rows first in both."""

    trunk: Attention
    upper: Attention
    upper_rows: Tensor
    split: int
    head_rows: Tensor
    head_split: int


def available_for(model: Model, kv_trunk: Tensor, kv_upper: Tensor) -> bool:
    """True if all is contiguous on the CPU, vectors and pages of one native dtype, matrices of it or compact, int8 or int4."""
    dtype, matrices = model.embed_table.dtype, _all_matrices(model)
    vectors = [model.embed_table, model.final_norm, kv_trunk, kv_upper]
    for layer in (*model.trunk, *model.upper):
        vectors += [layer.input_norm, layer.qkv.bias, layer.post_norm]
    tensors = [*vectors, *(m.weight for m in matrices), *(m.scale for m in matrices if m.scale is not None)]
    return (
        dtype in DTYPES
        and all(t.dtype == dtype for t in vectors)
        and all(_runs(m, dtype) for m in matrices)
        and all(t.is_contiguous() and t.device.type == "cpu" for t in tensors)
    )


def chosen() -> bool:
    """True if operators run natively unless told otherwise."""
    return linear.backends("cpu")[0] == "native"


def _runs(matrix: LinearWeight, dtype: torch.dtype) -> bool:
    """Whether a native kernel takes the matrix."""
    if matrix.scheme == "plain":
        return matrix.weight.dtype == dtype
    if matrix.scheme == "compact":
        return True
    if matrix.scheme == "int8":
        return matrix.scale.dtype == torch.float32 and matrix.num_inputs % 64 == 0
    return matrix.scheme == "int4" and matrix.scale.dtype == torch.bfloat16


def _most_rows(scheme: str, dtype: torch.dtype, inputs: int) -> float:
    """Rows of a branch up to which the operator of such a matrix is a native kernel."""
    if scheme in ("int8", "int4"):
        return max_rows()
    many = takes_many(dtype, inputs) if scheme == "plain" else runs_wide()
    return math.inf if many else MAX_ROWS


class ModelStep:
    """Bound to one model and its pages; keeps them alive. Check :func:`available_for` first. ``bound`` is the C++ object.

    Args:
        num_text_layers, num_audio_layers: how many of ``model.upper`` each branch runs.
        kv_trunk, kv_upper: [layers, 2, pages, page_size, num_kv_heads, head_dim].
    """

    def __init__(self, model: Model, kv_trunk: Tensor, kv_upper: Tensor, num_text_layers: int, num_audio_layers: int):
        from .. import _native

        self._keep = (model, kv_trunk, kv_upper)
        self._dtype, self._vocabulary = model.embed_table.dtype, model.lm_head.num_outputs
        self._kinds = {(m.scheme, self._dtype, m.num_inputs) for m in _all_matrices(model)}
        first = model.trunk[0]
        page_size, num_kv_heads, head_dim = kv_trunk.shape[3:]
        hidden, intermediate = model.embed_table.shape[1], first.down.num_inputs
        sizes = [hidden, intermediate, first.num_heads, num_kv_heads, head_dim, page_size, self._vocabulary]
        heads = [*_matrix(model.lm_head), *_matrix(model.audio_head)]
        ends = [model.embed_table.data_ptr(), model.final_norm.data_ptr(), *heads]
        self.bound = _native.ModelStep(
            DTYPES[self._dtype],
            [*sizes, num_text_layers, num_audio_layers],
            first.eps,
            [*ends, *(t.data_ptr() for t in model.rotary)],
            [_addresses(layer, kv) for layer, kv in zip(model.trunk, kv_trunk)],
            [_addresses(layer, kv) for layer, kv in zip(model.upper, kv_upper)],
        )

    def fits(self, layout: Layout) -> bool:
        """True if the native backend is in use, and the operators of so many rows are all native kernels too."""
        trunk, split, upper = layout.trunk.positions.shape[0], layout.split, layout.upper_rows.shape[0]
        if not trunk or not chosen():
            return False
        rows = max(trunk, split, upper - split)
        return rows <= MAX_ROWS or rows <= min(MAX_STEP_ROWS, *(_most_rows(*kind) for kind in self._kinds))

    def __call__(
        self,
        audio_ids: Tensor,
        text_ids: Tensor,
        layout: Layout,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ids int64 [T] → text logits [head_split, V] and audio logits [n - head_split, V] of the wanted rows.

        ``features`` [F, H] and ``feature_rows`` int64 [T] as ``dual_embed`` takes them.
        """
        if operator.counting:
            operator.calls["model_step", "native"] += 1
        text = torch.empty(layout.head_split, self._vocabulary, dtype=self._dtype)
        audio = torch.empty(layout.head_rows.shape[0] - layout.head_split, self._vocabulary, dtype=self._dtype)
        trunk, upper = _contiguous(layout.trunk), _contiguous(layout.upper)
        ids = (audio_ids.contiguous(), text_ids.contiguous())
        if features is not None:
            features, feature_rows = features.to(self._dtype).contiguous(), feature_rows.contiguous()
        self.bound.run(
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
            pointer(features),
            0 if features is None else feature_rows.data_ptr(),
        )
        return text, audio


def _all_matrices(model: Model) -> list[LinearWeight]:
    return [model.lm_head, model.audio_head, *(m for layer in (*model.trunk, *model.upper) for m in _matrices(layer))]


def _matrices(layer: Layer) -> tuple[LinearWeight, ...]:
    return layer.qkv, layer.output, layer.gate_up, layer.down


def _matrix(matrix: LinearWeight) -> list[int]:
    """Format (enum Format of csrc/cpu/model_step.h), weight, scale."""
    return [FORMATS[matrix.scheme], matrix.weight.data_ptr(), pointer(matrix.scale)]


def _addresses(layer: Layer, kv: Tensor) -> list[int]:
    vectors = (layer.input_norm, layer.qkv.bias, layer.post_norm, kv[0], kv[1])
    return [*(t.data_ptr() for t in vectors), *(part for m in _matrices(layer) for part in _matrix(m))]


def _contiguous(a: Attention) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in (a.positions, a.slots, a.block_tables, a.seq_lens, a.cu_seqlens_q))


def _describe(tensors: tuple[Tensor, ...]) -> list[int]:
    """Rows, pages of a table's row, sequences, and where the tensors lie."""
    positions, _, tables, lengths, _ = tensors
    return [positions.shape[0], tables.shape[1], lengths.shape[0], *(t.data_ptr() for t in tensors)]
