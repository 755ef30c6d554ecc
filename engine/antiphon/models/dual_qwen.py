"""The dual-head Qwen2.5: a trunk, then a text and an audio branch that run as one batched pass.

Source: reference behaviour, section 8. Activations are ragged: T rows of one step, rows of one sequence adjacent and in
order. The trunk runs every row; a branch runs the rows that need it. In the upper layers the rows of both branches
stand one after the other, text first: rows [0, split) and [split, R).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from antiphon_kernels import LinearWeight, add_rms_norm, dual_embed, paged_attention, rms_norm, rope_cache

from ..config import LlmConfig
from .dense import Dense


@dataclass(frozen=True)
class AttentionLayout:
    """Where the rows of one attention launch stand: positions and cache slots per row, pages and lengths per sequence.

    positions, slots int64 [R]; block_tables int32 [S, max_pages]; cu_seqlens_q int32 [S + 1]; seq_lens int32 [S].
    """

    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    max_seqlen_q: int
    planned: Callable[[Tensor, Tensor], Tensor] | None = None

    def attend(self, q: Tensor, kv: Tensor, scale: float) -> Tensor:
        """Attention of q [R, Hq, D] over one layer's pages kv [2, pages, ...]; ``planned`` replaces our operator."""
        if self.planned is not None:
            return self.planned(q, kv)
        return paged_attention(
            q, kv[0], kv[1], self.block_tables, self.cu_seqlens_q, self.seq_lens, self.max_seqlen_q, scale
        )

    def sequences(self, first: int, last: int, first_row: int, last_row: int) -> AttentionLayout:
        """The layout of sequences [first, last), which hold rows [first_row, last_row)."""
        return AttentionLayout(
            self.positions[first_row:last_row],
            self.slots[first_row:last_row],
            self.block_tables[first:last],
            self.cu_seqlens_q[first : last + 1] - first_row,
            self.seq_lens[first:last],
            self.max_seqlen_q,
        )


@dataclass(frozen=True)
class StepLayout:
    """Everything about one step's rows that the network needs.

    ``upper_rows`` int64 [R] picks the trunk rows that enter the branches, text branch first; ``split`` of them are text.
    ``num_text_sequences`` of the sequences of ``upper`` are text. ``head_rows`` int64 [n] picks the rows of the branches
    whose logits are wanted, text first; ``head_split`` of them are text.
    """

    trunk: AttentionLayout
    upper: AttentionLayout
    upper_rows: Tensor
    split: int
    num_text_sequences: int
    head_rows: Tensor
    head_split: int


@dataclass(frozen=True)
class KVPages:
    """Key/value pages: trunk and upper [layers, 2, pages, page_size, Hkv, D]; both branches share ``upper``."""

    trunk: Tensor
    upper: Tensor


def rotary_table(num_positions: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [num_positions, head_dim / 2], of position * theta^(-2i / head_dim)."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


class DecoderLayer:
    """One Qwen2 layer in branch form: every weight has a leading branch dimension (1 in the trunk, 2 in a paired layer).

    The four matrices are plain or quantised, whichever is stored (``LinearWeight``).
    """

    def __init__(self, config: LlmConfig, weights: dict[str, Tensor], prefix: str):
        self.num_heads = config.num_heads
        self.eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        self.input_norm = weights[f"{prefix}.input_norm"]
        self.qkv = LinearWeight.named(weights, f"{prefix}.qkv_weight", bias=f"{prefix}.qkv_bias")
        self.output = LinearWeight.named(weights, f"{prefix}.o_weight")
        self.post_norm = weights[f"{prefix}.post_norm"]
        self.gate_up = LinearWeight.named(weights, f"{prefix}.gate_up")
        self.down = LinearWeight.named(weights, f"{prefix}.down")

    @property
    def num_branches(self) -> int:
        """2 for a layer that both branches have, else 1."""
        return self.input_norm.shape[0]

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        layout: AttentionLayout,
        kv: Tensor,
        split: int,
    ) -> tuple[Tensor, Tensor]:
        """x, residual [R, H] → the layer's last contribution and the residual without it; kv [2, pages, ...]."""
        if residual is None:
            y, residual = rms_norm(x, self.input_norm, split, self.eps), x
        else:
            y, residual = add_rms_norm(x, residual, self.input_norm, split, self.eps)
        qkv = self.qkv(y, split)
        q = rope_cache(qkv, layout.positions, *rotary, layout.slots, kv[0], kv[1], self.num_heads)
        attended = layout.attend(q, kv, self.scale)
        x = self.output(attended.flatten(1), split)
        y, residual = add_rms_norm(x, residual, self.post_norm, split, self.eps)
        x = self.down(self.gate_up.gated(y, split), split)
        return x, residual


class DualQwen:
    """The whole language model over packed weights (names: ``checkpoint.load_llm``)."""

    def __init__(self, config: LlmConfig, weights: dict[str, Tensor]):
        self.config = config
        self.weights = weights
        self.embed_table = weights["embed"]
        self.trunk = [DecoderLayer(config, weights, f"trunk.{i}") for i in range(config.num_trunk_layers)]
        self.num_upper_layers = max(config.num_text_layers, config.num_audio_layers)
        self.upper = [DecoderLayer(config, weights, f"upper.{j}") for j in range(self.num_upper_layers)]
        self.final_norm = weights["final_norm"]
        self.lm_head, self.audio_head = (LinearWeight.named(weights, head) for head in ("lm_head", "audio_head"))
        self.rotary = rotary_table(config.max_positions, config.head_dim, config.rope_theta, self.embed_table.device)

    def adapt(self, features: Tensor) -> Tensor:
        """Continuous Whisper features [n, adaptor_input] → [n, H], row by row."""
        first, second = self._adaptor
        x = second(F.silu(first(features.to(self.embed_table.dtype))))
        norm = (self.weights["adaptor.4.weight"], self.weights["adaptor.4.bias"])
        return F.layer_norm(x, x.shape[-1:], *norm, self.config.rms_norm_eps)

    @cached_property
    def _adaptor(self) -> tuple[Dense, Dense]:
        return Dense.named(self.weights, "adaptor.0"), Dense.named(self.weights, "adaptor.3")

    def embed(self, audio_ids: Tensor, text_ids: Tensor, features: Tensor | None, feature_rows: Tensor) -> Tensor:
        """Fused input [T, H]; ``features`` are adaptor outputs, ``feature_rows`` -1 where there is none."""
        return dual_embed(audio_ids, text_ids, self.embed_table, features, feature_rows)

    def hidden(
        self, x: Tensor, layout: StepLayout, kv: KVPages, observe: Callable[[str, Tensor], None] | None = None
    ) -> Tensor:
        """Fused input [T, H] → last hidden states [R, H] of both branches, text rows first, before the final norms.

        ``observe(name, hidden)`` sees the state after every layer, for tracing.
        """
        residual = None
        for i, layer in enumerate(self.trunk):
            x, residual = layer(x, residual, self.rotary, layout.trunk, kv.trunk[i], x.shape[0])
            if observe:
                observe(f"trunk.{i}", x + residual)
        x = (x + residual)[layout.upper_rows]
        return self._branches(x, layout, kv, observe)

    def _branches(
        self, x: Tensor, layout: StepLayout, kv: KVPages, observe: Callable[[str, Tensor], None] | None
    ) -> Tensor:
        """Both branches over rows [R, H]; layers that one branch lacks run on the other's rows alone."""
        if not x.shape[0]:
            return x
        num_paired = min(self.config.num_text_layers, self.config.num_audio_layers)
        residual = None
        for j in range(num_paired):
            x, residual = self.upper[j](x, residual, self.rotary, layout.upper, kv.upper[j], layout.split)
            if observe:
                observe(f"upper.{j}", x + residual)
        state = x if residual is None else x + residual
        if num_paired == self.num_upper_layers:
            return state
        text, audio = state[: layout.split], state[layout.split :]
        if self.config.num_text_layers > num_paired:
            text = self._single(text, layout, kv, True, num_paired, observe)
        else:
            audio = self._single(audio, layout, kv, False, num_paired, observe)
        return torch.cat((text, audio))

    def _single(
        self,
        x: Tensor,
        layout: StepLayout,
        kv: KVPages,
        is_text: bool,
        first: int,
        observe: Callable[[str, Tensor], None] | None,
    ) -> Tensor:
        """Layers from ``first`` on, for one branch's rows."""
        if not x.shape[0]:
            return x
        n, s = layout.upper.positions.shape[0], layout.upper.seq_lens.shape[0]
        t = layout.num_text_sequences
        own = (
            layout.upper.sequences(0, t, 0, layout.split) if is_text else layout.upper.sequences(t, s, layout.split, n)
        )
        residual = None
        for j in range(first, self.num_upper_layers):
            x, residual = self.upper[j](x, residual, self.rotary, own, kv.upper[j], x.shape[0])
            if observe:
                observe(f"upper.{j}", x + residual)
        return x + residual

    def logits(self, hidden: Tensor, layout: StepLayout) -> tuple[Tensor, Tensor]:
        """Hidden states [R, H] → text logits [head_split, V] and audio logits [n - head_split, V] of the wanted rows."""
        split = layout.head_split
        y = rms_norm(hidden[layout.head_rows], self.final_norm, split, self.config.rms_norm_eps)
        text, audio = y[:split], y[split:]
        return (
            self.lm_head(text, text.shape[0]) if split else y.new_empty(0, self.config.vocab_size),
            self.audio_head(audio, audio.shape[0]) if len(audio) else y.new_empty(0, self.config.vocab_size),
        )
