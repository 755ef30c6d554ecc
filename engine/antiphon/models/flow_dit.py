"""The flow-matching DiT: one velocity evaluation over a ragged batch of streams (reference behaviour, section 11).

Rows are mel frames of 20 ms, grouped under their semantic tokens: row r belongs to token ``r // frames_per_token``, so
everything that depends on the conditioning alone is computed once per token. Every stream brings its window of cached
keys and values; its rows see that window and each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from antiphon_kernels import euler_step, flow_attention, flow_rope, gate_residual, gelu, layer_norm_modulate
from antiphon_kernels.native import bind_flow_pass

from ..config import FlowConfig
from .dense import Dense

if TYPE_CHECKING:
    from antiphon_kernels.native.flow_pass import FlowPass

TIME_FEATURES = 256
NORM_EPS = 1e-6
MODULATED_ROWS = 128
"""Tokens of all steps that a native call makes the modulations of: enough to make the most of reading their weights."""
PACKED_LIMIT = 512 << 20
"""Bytes in which a native call may keep windows packed over its steps; a batch that needs more packs them in each."""


@dataclass(frozen=True)
class FlowBatch:
    """Where the rows of a pass lie: streams one after the other, each with its slot of the key/value window.

    ``token_ids`` int64 [T / frames_per_token]; ``positions`` int64 [T]; ``cu_seqlens`` int32 [S+1]; ``slots`` int64 [S];
    ``cache_lens`` int32 [S], valid rows of each window; ``max_seqlen``: rows of the longest stream.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    slots: torch.Tensor
    cache_lens: torch.Tensor
    max_seqlen: int
    frames_per_token: int = 4


@dataclass(frozen=True)
class FlowWindow:
    """Keys (after rotation) and values of earlier chunks.

    ``storage`` [2, layers, slots * window + 1, heads, head_dim]: keys, then values; the last row of a layer is spare: rows
    that belong to no stream go there.
    """

    storage: torch.Tensor
    num_slots: int

    @classmethod
    def empty(cls, config: FlowConfig, num_slots: int, window: int, dtype: torch.dtype, device) -> FlowWindow:
        """Uninitialised storage for ``num_slots`` streams of up to ``window`` rows."""
        shape = (2, config.depth, num_slots * window + 1, config.num_heads, config.head_dim)
        return cls(torch.empty(shape, dtype=dtype, device=device), num_slots)

    @cached_property
    def keys(self) -> torch.Tensor:
        """[layers, slots, window, heads, head_dim]."""
        return self.storage[0, :, :-1].unflatten(1, (self.num_slots, -1))

    @cached_property
    def values(self) -> torch.Tensor:
        """[layers, slots, window, heads, head_dim]."""
        return self.storage[1, :, :-1].unflatten(1, (self.num_slots, -1))

    @property
    def spare_place(self) -> int:
        """Where rows of no stream go."""
        return self.storage.shape[2] - 1

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Store ``k[rows]``, ``v[rows]`` at ``places`` = slot * window + row of the slot (int64 [n] each)."""
        for cache, new in zip(self.storage[:, layer], (k, v)):
            cache.index_copy_(0, places, new[rows])


class FlowDit:
    """The network of ``audio_detokenizer/``; weights are the official names without ``speech_model.``."""

    def __init__(self, config: FlowConfig, weights: dict[str, torch.Tensor]):
        self.config = config
        self.weights = weights
        table = weights["semantic_token_embedding.weight"]
        self.dtype, self.device = table.dtype, table.device
        self.cos, self.sin = rope_tables(config.max_positions, config.head_dim, config.rope_base, table.device)
        self._dense = {
            name: Dense.named(weights, name)
            for name in (key.removesuffix(".weight") for key in weights)
            if f"{name}.bias" in weights
        }
        self._time_tables: dict[tuple[int, ...], torch.Tensor] = {}

    def time_table(self, times: Sequence[int]) -> torch.Tensor:
        """Time vectors of integer times, [len(times), H]; computed once per grid."""
        key = tuple(times)
        if key not in self._time_tables:
            features = time_features(torch.tensor(key, dtype=torch.float32, device=self.device)).to(self.dtype)
            hidden = F.silu(self._linear("t_embedder.mlp.0", features))
            self._time_tables[key] = self._linear("t_embedder.mlp.2", hidden)
        return self._time_tables[key]

    def condition(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Semantic embeddings of the tokens, [tokens, H]; the same for all passes of a chunk."""
        return F.embedding(token_ids, self.weights["semantic_token_embedding.weight"])

    def velocity(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        condition: torch.Tensor,
        batch: FlowBatch,
        window: FlowWindow,
        *,
        bound: bool = True,
    ) -> torch.Tensor:
        """Velocity [T, num_mels] at state ``x`` [T, num_mels] and time vector ``time`` [H]; the window is only read.

        ``bound``: one native call where there is one; without it operators, which is what a capture must see.
        """
        modulation = F.silu(time + condition)
        if bound and (flow_pass := self._pass_for(batch)):
            return flow_pass(x, modulation, batch, window.keys, window.values)
        x = self._linear("input_linear", x)
        for layer in range(self.config.depth):
            x = self._block(layer, x, modulation, batch, window)
        shift, scale = self._linear("final_layer.adaLN_modulation.1", modulation).chunk(2, dim=-1)
        x = layer_norm_modulate(x, shift, scale, batch.frames_per_token, NORM_EPS)
        return self._linear("final_layer.linear", x)

    def integrate(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        widths: Sequence[float],
        condition: torch.Tensor,
        batch: FlowBatch,
        window: FlowWindow,
    ) -> torch.Tensor:
        """The state after Euler steps of ``widths`` from ``x`` [T, num_mels]; ``times`` [steps, H], the time vector of each.

        Several steps are one native call where there is one.
        """
        if not (flow_pass := self._pass_for(batch)):
            for time, width in zip(times, widths, strict=True):
                x = euler_step(x, self.velocity(x, time, condition, batch, window), width)
            return x
        together = max(1, MODULATED_ROWS // len(condition))
        for first in range(0, len(widths), together):
            steps = slice(first, first + together)
            modulation = F.silu(times[steps, None] + condition)
            x = flow_pass.integrate(x, modulation, batch, window.keys, window.values, widths[steps])
        return x

    def fill_window(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        condition: torch.Tensor,
        batch: FlowBatch,
        window: FlowWindow,
        rows: torch.Tensor,
        places: torch.Tensor,
        *,
        bound: bool = True,
    ) -> None:
        """The pass whose only product is keys and values: those of ``rows`` go to ``places`` of the window.

        Every layer reads the window as it was before. The last layer computes nothing but its keys and values. ``bound`` as
        in :meth:`velocity`.
        """
        modulation = F.silu(time + condition)
        if bound and (flow_pass := self._pass_for(batch)):
            return flow_pass.fill(x, modulation, batch, window.keys, window.values, rows, places)
        x = self._linear("input_linear", x)
        for layer in range(self.config.depth):
            last = layer == self.config.depth - 1
            x = self._block(layer, x, modulation, batch, window, store=(rows, places), stop_at_keys=last)

    def _pass_for(self, batch: FlowBatch) -> FlowPass | None:
        """The native call that takes the batch, if there is one."""
        return self._flow_pass if self._flow_pass and self._flow_pass.fits(batch) else None

    @cached_property
    def _flow_pass(self) -> FlowPass | None:
        """An evaluation as one native call, made at the first; None elsewhere."""
        if self.device.type != "cpu":
            return None
        return bind_flow_pass(self.config, self._dense, self.cos, self.sin, NORM_EPS, PACKED_LIMIT)

    def _block(
        self,
        layer: int,
        x: torch.Tensor,
        modulation: torch.Tensor,
        batch: FlowBatch,
        window: FlowWindow,
        store: tuple[torch.Tensor, torch.Tensor] | None = None,
        stop_at_keys: bool = False,
    ) -> torch.Tensor:
        name, frames = f"blocks.{layer}", batch.frames_per_token
        modulations = self._linear(f"{name}.adaLN_modulation.1", modulation)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(6, dim=-1)
        qkv = self._linear(f"{name}.attn.qkv", layer_norm_modulate(x, shift1, scale1, frames, NORM_EPS))
        q, k, v = flow_rope(qkv, batch.positions, self.cos, self.sin, self.config.num_heads)
        if not stop_at_keys:
            attended = flow_attention(
                q, k, v, batch.cu_seqlens, window.keys[layer], window.values[layer],
                batch.slots, batch.cache_lens, batch.max_seqlen, self.config.head_dim**-0.5,
            )  # fmt: skip
            x = gate_residual(x, self._linear(f"{name}.attn.proj", attended.flatten(1)), gate1, frames)
            hidden = self._linear(f"{name}.mlp.fc1", layer_norm_modulate(x, shift2, scale2, frames, NORM_EPS))
            hidden = self._linear(f"{name}.mlp.fc2", gelu(hidden, True))
            x = gate_residual(x, hidden, gate2, frames)
        if store is not None:
            window.write(layer, k, v, *store)
        return x

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._dense[name](x)


def rope_tables(num_positions: int, head_dim: int, base: float, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * base^(-2i / head_dim), float32 [num_positions, head_dim / 2] each."""
    frequencies = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32, device=device), frequencies)
    return angles.cos(), angles.sin()


def time_features(times: torch.Tensor) -> torch.Tensor:
    """Sinusoids of float32 ``times`` [n]: 128 cosines, then 128 sines, [n, 256]."""
    half = TIME_FEATURES // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    angles = torch.outer(times, torch.exp(-math.log(10000.0) * steps / half))
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
