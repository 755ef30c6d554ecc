"""The memory plan of an engine, from its model and its limits, before it allocates anything."""

from __future__ import annotations

import torch

from antiphon_kernels import native

from .checkpoint import expected
from .draft import draft_bytes
from .engine_config import EngineConfig, kv_sizes
from .errors import ConfigError
from .execution.decode_graphs import ROWS, Kind
from .execution.memory_plan import MemoryPlan, memory_plan, parameter_bytes
from .runtime import Runtime

SHAPES_OF_SPEECH = 40
"""Graphs of solves and vocoder passes to reckon with."""


def captured_rows(config: EngineConfig) -> list[int]:
    """Sizes of decode steps that an engine captures when it starts."""
    return [rows for rows in ROWS if rows < 2 * config.max_sequences]


def engine_memory(runtime: Runtime, config: EngineConfig) -> MemoryPlan:
    """Weights as they are loaded, caches and workspaces of a resolved configuration."""
    parts = {"llm": runtime.llm.weights}
    if runtime.can_speak:
        parts |= {"flow": runtime.flow.weights, "vocoder": runtime.vocoder.weights}
    weights = {part: sum(t.nbytes for t in named.values()) for part, named in parts.items()}
    if runtime.draft is not None:
        weights["draft"] = draft_bytes(runtime.draft, runtime.llm)
    c = runtime.config
    weights["whisper"] = parameter_bytes(expected.whisper_keys(c.whisper), runtime.dtype)
    weights["speech tokenizer"] = parameter_bytes(expected.speech_tokenizer_keys(c.speech_tokenizer), torch.float32)
    on_gpu = runtime.device.type == "cuda"
    if not on_gpu:
        weights |= second_copies(weights, runtime.dtype)
    launches = len({1, config.decode_steps_per_launch})
    return memory_plan(
        c,
        weights,
        kv_sizes(config),
        config.max_sequences,
        config.token_budget,
        runtime.dtype,
        num_graphs=launches * len(captured_rows(config)) * len(Kind) + SHAPES_OF_SPEECH if on_gpu else 0,
        speech_batch=config.max_speech_batch,
        num_voices=config.max_voices,
        natively=not on_gpu and native.available,
    )


def second_copies(weights: dict[str, int], dtype: torch.dtype) -> dict[str, int]:
    """Bytes that a CPU's native networks keep beside the weights: convolutions in their own order, and three bytes for every
    four of a float32 matrix where those are multiplied as integers."""
    packed = native.packed_vocoder_bytes(weights.get("vocoder", 0), dtype)
    copies = {"vocoder, packed": packed} if packed else {}
    if native.prefers_fixed(torch.empty(1, 1)):
        float32 = {"speech tokenizer"} | ({"whisper", "flow"} if dtype == torch.float32 else set())
        copies |= {f"{part}, packed": size * 3 // 4 for part, size in weights.items() if part in float32}
    return copies


def check_fits(plan: MemoryPlan, runtime: Runtime) -> None:
    """ConfigError if the device has no room for what is still to be allocated."""
    if runtime.device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(runtime.device)
    needed = sum(plan.caches.values()) + sum(plan.workspace.values())
    if needed > free:
        raise ConfigError(
            f"the engine needs {needed / 2**30:.1f} GiB beside its weights, {free / 2**30:.1f} of {total / 2**30:.1f} GiB are "
            "free; lower kv_bytes, max_sequences or max_voices, or load a quantised model"
        )
