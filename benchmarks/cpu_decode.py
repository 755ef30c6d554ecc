"""Decode steps on the CPU against its memory: ``python -m benchmarks.cpu_decode --json OUT``.

Measures the read bandwidth of the machine (all native threads, a buffer far larger than the caches in pages of 2 MB,
which read faster than small ones) and the native decode step of a synthetic dual-head model in turn, for bf16 (plain and compact), int8 and
int4 weights, and the same bf16 weights in a float32 model (plain and compact), at batch 1, 2, 4 and 8. Only bytes that a step must read are
counted: every matrix, its scales and the cached keys and values of each sequence.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from antiphon.checkpoint.presets import half_billion, one_billion
from antiphon.checkpoint.quantized import matrix_reader
from antiphon.checkpoint.safetensors_files import SINGLE, read_file
from antiphon.checkpoint.safetensors_writer import Specs, write_tensors
from antiphon.config import LlmConfig
from antiphon.execution.kv_cache import PAGE_SIZE, allocate, sizes_for
from antiphon.models.dual_qwen import AttentionLayout, DualQwen, KVPages, StepLayout
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.native import available, status
from antiphon_kernels.native.model_step import ModelStep
from antiphon_kernels.weights_memory import WeightsMemory

from .report import add_json_option, publish, table

CONFIGS = {"1b": one_billion, "0.5b": half_billion}
QUANTIZE = {"compact": compact, "int8": quantize_int8, "int4": quantize_int4, "fp32-compact": compact}
SCHEMES = ["bf16", "compact", "int8", "int4"]
FLOAT32 = ["fp32", "fp32-compact"]
COLUMNS = ("scheme", "batch", "bandwidth_gbs", "step_ms", "spread_ms", "read_gb", "decode_gbs", "share", "steps_per_s")


def working_dtype(scheme: str) -> torch.dtype:
    """Of everything that is no matrix."""
    return torch.float32 if scheme in FLOAT32 else torch.bfloat16


def synthetic_weights(c: LlmConfig, scheme: str) -> dict[str, torch.Tensor]:
    """Packed weights of the model's shapes, where loading puts them: floats in large pages, integers in a mapped file.
    Values repeat one block of noise, which changes no time."""
    memory, dtype = WeightsMemory(), working_dtype(scheme)
    noise = torch.randn(1 << 20).to(torch.bfloat16)
    h, i, v = c.hidden_size, c.intermediate_size, c.vocab_size
    weights: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        count = torch.Size(shape).numel()
        weight = noise.repeat(-(-count // len(noise)))[:count].view(shape) / shape[-1] ** 0.5
        if scheme in QUANTIZE and len(shape) > 1 and name.endswith(("weight", "gate_up", "down", "head")):
            weight, weights[f"{name}.scale"] = QUANTIZE[scheme](weight)
        if weight.dtype == torch.bfloat16:
            weight = weight.to(dtype)
        if scheme not in ("int8", "int4"):
            weight = memory.empty(tuple(weight.shape), weight.dtype).copy_(weight)
        weights[name] = weight

    paired = min(c.num_text_layers, c.num_audio_layers)
    layers = [(f"trunk.{n}", 1) for n in range(c.num_trunk_layers)]
    layers += [(f"upper.{n}", 2 if n < paired else 1) for n in range(max(c.num_text_layers, c.num_audio_layers))]
    for prefix, branches in layers:
        put(f"{prefix}.qkv_weight", branches, c.qkv_size, h)
        put(f"{prefix}.o_weight", branches, h, h)
        put(f"{prefix}.gate_up", branches, 2 * i, h)
        put(f"{prefix}.down", branches, h, i)
        weights[f"{prefix}.qkv_bias"] = torch.zeros(branches, c.qkv_size, dtype=dtype)
        for norm in ("input_norm", "post_norm"):
            weights[f"{prefix}.{norm}"] = torch.ones(branches, h, dtype=dtype)
    weights["final_norm"] = torch.ones(2, h, dtype=dtype)
    put("embed", v, h)
    put("lm_head", v, h)
    put("audio_head", v, h)
    return as_loaded(weights) if scheme in ("int8", "int4") else weights


def as_loaded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as loading finds them in a file that has just been written."""
    specs: Specs = {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SINGLE
        write_tensors(path, specs, weights.items())
        read = matrix_reader(path)
        return {name: read(stored) for name, stored in read_file(path).items()}


def step_layout(batch: int, context: int) -> StepLayout:
    """``batch`` speaking sequences, each at position ``context`` - 1."""
    pages = -(-context // PAGE_SIZE)

    def attention(rows: int) -> AttentionLayout:
        tables = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
        position = torch.full((rows,), context - 1)
        slots = tables[:, (context - 1) // PAGE_SIZE].long() * PAGE_SIZE + (context - 1) % PAGE_SIZE
        starts = torch.arange(rows + 1, dtype=torch.int32)
        return AttentionLayout(position, slots, tables, starts, (position + 1).to(torch.int32), 1)

    both, rows = torch.arange(2 * batch), torch.arange(batch)
    return StepLayout(attention(batch), attention(2 * batch), rows.repeat(2), batch, batch, both, batch)


def bytes_read(weights: dict[str, torch.Tensor], kv: KVPages, batch: int, context: int) -> int:
    """What one step must read: everything but the embedding, and each sequence's keys and values."""
    matrices = sum(t.numel() * t.itemsize for name, t in weights.items() if not name.startswith("embed"))
    row = kv.trunk.shape[-1] * kv.trunk.shape[-2] * kv.trunk.itemsize * 2
    return matrices + row * context * batch * (kv.trunk.shape[0] + 2 * kv.upper.shape[0])


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(first: Callable[[], object], second: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Wall times of both, in turn, so that both see the same machine."""
    return [(seconds(first), seconds(second)) for _ in range(repeats)]


def measure(
    c: LlmConfig, scheme: str, batches: list[int], context: int, repeats: int, probe: torch.Tensor
) -> list[dict]:
    """Rows of one scheme."""
    from antiphon_kernels import _native

    weights = synthetic_weights(c, scheme)
    model = DualQwen(c, weights)
    sizes = sizes_for(c, max(batches) * -(-context // PAGE_SIZE) * PAGE_SIZE)
    kv = allocate(c, sizes, working_dtype(scheme), torch.device("cpu"))
    step = ModelStep(model, kv.trunk, kv.upper, c.num_text_layers, c.num_audio_layers)
    rows = []
    for batch in batches:
        layout, ids = step_layout(batch, context), torch.arange(batch)
        assert step.fits(layout), "the native step must run what this benchmark claims to measure"
        step(ids, ids, layout)
        size = probe.numel() * probe.itemsize
        read, decode = partial(_native.read_probe, probe.data_ptr(), size), partial(step, ids, ids, layout)
        times = alternate(read, decode, repeats)
        bandwidth = size / statistics.median(t[0] for t in times) / 1e9
        steps = sorted(t[1] for t in times)
        median, gigabytes = statistics.median(steps), bytes_read(weights, kv, batch, context) / 1e9
        rows.append({
            "scheme": scheme, "batch": batch, "bandwidth_gbs": bandwidth, "step_ms": median * 1e3,
            "spread_ms": (steps[-1] - steps[0]) * 1e3, "read_gb": gigabytes, "decode_gbs": gigabytes / median,
            "share": gigabytes / median / bandwidth, "steps_per_s": 1 / median,
        })  # fmt: skip
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CONFIGS, default="1b")
    parser.add_argument("--schemes", nargs="+", choices=[*SCHEMES, *FLOAT32], default=SCHEMES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--context", type=int, default=128, help="positions of each sequence")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--probe-gb", type=float, default=2.0)
    add_json_option(parser)
    options = parser.parse_args()
    if not available:
        raise SystemExit(status())
    config = CONFIGS[options.model]().llm
    probe = WeightsMemory().empty((int(options.probe_gb * 2**30) // 8,), torch.int64).fill_(1)
    rows = []
    for scheme in options.schemes:
        rows += measure(config, scheme, options.batches, options.context, options.repeats, probe)
    print(status())
    print(table(rows, COLUMNS))
    publish("cpu_decode", rows, options.json, native=status(), model=options.model, context=options.context)


if __name__ == "__main__":
    main()
