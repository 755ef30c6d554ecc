"""What an engine will hold on its device, part by part, computed before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from antiphon_kernels.native import MAX_STEP_ROWS

from ..config import FlowConfig, LlmConfig, ModelConfig, VocoderConfig
from ..models.flow_dit import MODULATED_ROWS, PACKED_LIMIT
from .kv_cache import KVSizes, page_bytes

GRAPH_OVERHEAD = 8 << 20
"""Assumed bytes that the driver keeps for one captured graph of some hundred kernels."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part; ``weights``, ``caches`` and ``workspace`` add up to ``total``."""

    weights: Mapping[str, int]
    caches: Mapping[str, int]
    workspace: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(sum(group.values()) for group in (self.weights, self.caches, self.workspace))

    def fits(self, num_bytes: float, reserve: float = 0.05) -> bool:
        """Whether it fits into that much memory with a share held back for the driver and fragmentation."""
        return self.total <= num_bytes * (1 - reserve)

    def lines(self) -> list[str]:
        """One line per part, GiB."""
        groups = {"weights": self.weights, "caches": self.caches, "workspace": self.workspace}
        rows = [(f"{kind}: {part}", size) for kind, group in groups.items() for part, size in group.items()]
        return [f"{name:34s} {size / 2**30:8.3f} GiB" for name, size in [*rows, ("total", self.total)]]


def memory_plan(
    config: ModelConfig,
    weights: Mapping[str, int],
    kv: KVSizes,
    num_slots: int,
    token_budget: int,
    dtype: torch.dtype = torch.bfloat16,
    num_graphs: int = 0,
    speech_batch: int = 16,
    num_voices: int | None = None,
    natively: bool = False,
) -> MemoryPlan:
    """The plan of an engine with ``num_slots`` requests at once and ``token_budget`` rows per step.

    ``weights``: bytes by part, as loaded; ``num_voices``: streams with a flow window, by default one a request.
    ``natively``: whether networks run as native calls, as on a CPU, which keep their buffers. Workspaces are upper
    bounds from the shapes; CUDA graphs share one pool as large as the largest step. Encoders, language model and speech
    may run at the same time, so their workspaces add up.
    """
    trunk, upper = page_bytes(config.llm, dtype)
    caches = {
        "key/value pages": kv.trunk * trunk + (kv.text + kv.audio) * upper,
        "histories and sampling state": num_slots * (2 * 4 * config.llm.max_positions + 128),
    }
    workspace = {"language model": llm_workspace(config.llm, token_budget, num_slots, dtype)}
    if natively:
        workspace["language model, native steps"] = native_step_bytes(config.llm, token_budget, dtype)
    workspace["encoders"] = 6 * 4 * config.whisper.max_positions * config.whisper.ffn_dim
    if config.flow is not None and config.vocoder is not None:
        caches["flow windows"] = (num_voices or num_slots) * flow_window_bytes(config.flow, dtype)
        workspace["flow"] = flow_workspace(config.flow, speech_batch * 168, dtype)
        if natively:
            workspace["flow, packed windows"] = flow_packed_bytes(config.flow, speech_batch, dtype)
        workspace["vocoder"] = vocoder_workspace(config.vocoder, speech_batch * 256, dtype)
    if num_graphs:
        workspace["CUDA graphs"] = num_graphs * GRAPH_OVERHEAD
    return MemoryPlan(dict(weights), caches, workspace)


def flow_window_bytes(config: FlowConfig, dtype: torch.dtype, window: int = 900) -> int:
    """One stream's keys and values."""
    return 2 * config.depth * window * config.hidden_size * dtype.itemsize


def llm_workspace(config: LlmConfig, rows: int, drawing: int, dtype: torch.dtype) -> int:
    """Activations of one layer over the rows of both branches, and the logits of the rows that draw."""
    wide = 3 * config.intermediate_size + 2 * config.qkv_size + 6 * config.hidden_size
    logits = 2 * drawing * config.vocab_size * (dtype.itemsize + 4)
    return 2 * rows * wide * dtype.itemsize + logits


def native_step_bytes(config: LlmConfig, rows: int, dtype: torch.dtype) -> int:
    """Buffers of a native step over the rows of both branches (csrc/cpu/model_step.h), without a prompt's packed keys."""
    wide = 4 * config.intermediate_size + config.qkv_size + 6 * config.hidden_size
    return 2 * min(rows, MAX_STEP_ROWS) * wide * dtype.itemsize


def flow_workspace(config: FlowConfig, rows: int, dtype: torch.dtype) -> int:
    """Activations of one block with its modulations, and the modulations of several steps, which a CPU keeps."""
    mlp = int(config.hidden_size * config.mlp_ratio)
    modulations = MODULATED_ROWS * (6 * config.depth + 2) * config.hidden_size
    return (rows * (14 * config.hidden_size + 2 * mlp) + modulations) * dtype.itemsize


def flow_packed_bytes(
    config: FlowConfig, streams: int, dtype: torch.dtype, rows: int = 168, window: int = 900
) -> int:
    """Keys and values of full windows and of the rows after them, which a CPU keeps packed over several steps as far as
    ``PACKED_LIMIT`` allows: of each layer whole blocks of 256, dims padded to 32, an element as ``AttentionPlan`` of
    csrc/cpu/kernels.h sizes it: bfloat16 in float32 at most, float32 in three pieces of bfloat16."""
    blocks, dims = math.ceil((window + rows) / 256), 32 * math.ceil(config.head_dim / 32)
    elements = streams * config.depth * config.num_heads * blocks * 2 * 256 * dims
    return min(PACKED_LIMIT, elements * (6 if dtype == torch.float32 else 4))


def vocoder_workspace(config: VocoderConfig, frames: int, dtype: torch.dtype) -> int:
    """Six signals of the widest stage: a block's input, sum, and what its convolutions and activations hold."""
    samples, widest = 1, 0
    for stage, rate in enumerate(config.upsample_rates):
        samples *= rate
        widest = max(widest, samples * (config.upsample_initial_channel >> (stage + 1)))
    return 6 * frames * widest * dtype.itemsize


def parameter_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Bytes of a part whose official tensors have these shapes."""
    return sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
