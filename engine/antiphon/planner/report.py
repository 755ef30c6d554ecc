"""A rehearsal as tables and as JSON: launches, bytes, operations, roofline, memory, latency and streams, all projected."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..config import ModelConfig
from ..execution.kv_cache import sizes_for
from ..execution.memory_plan import MemoryPlan, memory_plan
from .gpus import GpuSpec
from .recorder import Call, Part
from .rehearsal import Rehearsal
from .roofline import GRAPH_GAP, PartTime, part_time
from .step_costs import Efficiency

TOKENS_PER_SECOND = 12.5
POSITIONS_PER_STREAM = 1500
MEMORY_RESERVE = 0.05


@dataclass(frozen=True)
class Projection:
    """What a rehearsal says about one GPU. Seconds; ``streams``: real-time speakers by device time and by memory."""

    gpu: GpuSpec
    quant: str
    parts: tuple[PartTime, ...]
    launches_per_layer: int
    memory: MemoryPlan
    first_audio: dict[str, float]
    streams_by_time: int
    streams_by_memory: int
    fallbacks: tuple[str, ...]

    @property
    def streams(self) -> int:
        return min(self.streams_by_time, self.streams_by_memory)


def project(rehearsal: Rehearsal, gpu: GpuSpec, quant: str | None, num_streams: int) -> Projection:
    """Times, memory for ``num_streams``, latency and capacity."""
    times = {name: part_time(part, gpu) for name, part in rehearsal.parts.items()}
    plan = stream_memory(rehearsal, num_streams)
    per_stream = (stream_memory(rehearsal, num_streams + 64).total - plan.total) / 64
    room = gpu.memory * (1 - MEMORY_RESERVE) - plan.total
    return Projection(
        gpu=gpu,
        quant=quant or "bf16",
        parts=tuple(times.values()),
        launches_per_layer=launches_per_layer(rehearsal.parts["decode speech 1"]),
        memory=plan,
        first_audio=first_audio(rehearsal, times),
        streams_by_time=streams_by_time(rehearsal, times),
        streams_by_memory=max(0, num_streams + int(room // per_stream)),
        fallbacks=rehearsal.fallbacks,
    )


def launches_per_layer(part: Part) -> int:
    """Launches from one layer's key/value write to the next one's; the median, since the trunk's end and the heads are no layers."""
    marks = [i for i, call in enumerate(part.calls) if call.name == "rope_cache"]
    layers = [sum(c.launches for c in part.calls[a:b]) for a, b in itertools.pairwise(marks)]
    return sorted(layers)[len(layers) // 2] if layers else 0


def stream_memory(rehearsal: Rehearsal, num_streams: int) -> MemoryPlan:
    """Memory of an engine with room for so many speakers of 1500 positions."""
    return memory_of_streams(rehearsal.config, rehearsal.weight_bytes, num_streams)


def memory_of_streams(config: ModelConfig, weights: Mapping[str, int], num_streams: int) -> MemoryPlan:
    """The same from a model's sizes and its weights' bytes by part."""
    sizes = sizes_for(config.llm, num_streams * POSITIONS_PER_STREAM)
    return memory_plan(config, weights, sizes, num_streams, max(512, num_streams), num_graphs=48)


def first_audio(rehearsal: Rehearsal, times: dict[str, PartTime]) -> dict[str, float]:
    """Seconds from the last sample heard to the first sample out, nothing else running, by part."""
    steps = rehearsal.config.llm.audio_delay + rehearsal.workload.first_chunk
    parts = {
        "encoders": sum(times[name].projected for name in ("whisper", "speech tokenizer", "adaptor")),
        "prefill": times["prefill"].projected,
        f"{steps - 1} decode steps": (steps - 1) * times["decode speech 1"].projected,
        "ODE": times["ODE first chunk"].projected,
        "vocoder": times["vocoder first chunk"].projected,
    }
    return {**parts, "total": sum(parts.values())}


def streams_by_time(rehearsal: Rehearsal, times: dict[str, PartTime]) -> int:
    """Most speakers whose tokens, chunks and sound take no longer to make than to play, one after the other."""
    load = rehearsal.workload
    batches = sorted(load.batches)
    group = max(load.speech_batches)
    speech = (times[f"ODE steady {group}"].projected + times[f"vocoder {group}"].projected) / group
    period = load.chunk / TOKENS_PER_SECOND
    decode = {n: times[f"decode speech {n}"].projected for n in batches}
    most = 0
    for n in range(1, 4097):
        if load.chunk * interpolate(decode, n) + n * speech > period:
            break
        most = n
    return most


def interpolate(points: dict[int, float], x: int) -> float:
    """Piecewise linear through ``points``, straight on beyond the last."""
    keys = sorted(points)
    right = next((i for i, key in enumerate(keys) if key >= x), len(keys) - 1)
    if keys[right] == x or len(keys) == 1:
        return points[keys[right]]
    left = max(0, right - 1)
    right = max(right, left + 1)
    slope = (points[keys[right]] - points[keys[left]]) / (keys[right] - keys[left])
    return points[keys[left]] + slope * (x - keys[left])


def text_report(p: Projection) -> str:
    """The tables for people."""
    e = Efficiency()
    lines = [
        f"{p.gpu.name}, {p.quant}: PROJECTED from a rehearsal without a GPU, not measured",
        (
            f"projected = bytes at {e.bandwidth:.0%} of bandwidth or operations at {e.gemm:.0%} ({e.vocoder_conv:.0%} for the vocoder's "
            f"convolutions) of peak, plus {GRAPH_GAP * 1e6:.0f} us per launch; roofline = 100 %, no gaps"
        ),
        "",
        f"{'part':22s} {'launches':>8s} {'GB':>9s} {'TFLOP':>8s} {'roofline ms':>12s} {'projected ms':>13s} {'memory-bound':>13s}",
    ]
    lines += [
        f"{t.name:22s} {t.launches:8d} {t.num_bytes / 1e9:9.3f} {t.flops / 1e12:8.3f} {t.roofline * 1e3:12.2f} "
        f"{t.projected * 1e3:13.2f} {t.memory_share:13.0%}"
        for t in p.parts
    ]
    lines += ["", f"launches per layer (both branches counted once): {p.launches_per_layer}", "", *p.memory.lines()]
    fits = "fits" if p.memory.fits(p.gpu.memory, MEMORY_RESERVE) else "DOES NOT FIT"
    lines += [f"{fits} into {p.gpu.memory / 2**30:.1f} GiB with {MEMORY_RESERVE:.0%} held back", ""]
    parts = ", ".join(f"{name} {seconds * 1e3:.0f}" for name, seconds in p.first_audio.items())
    lines += [
        f"projected first audio at low load, ms: {parts}",
        f"projected real-time streams: {p.streams} (device time allows {p.streams_by_time}, memory {p.streams_by_memory})",
    ]
    if p.fallbacks:
        lines += [f"run through PyTorch's own GPU operators: {', '.join(p.fallbacks)}"]
    return "\n".join(lines)


def json_report(p: Projection, rehearsal: Rehearsal) -> dict:
    """Everything, with every operator of every part."""
    return {
        "projected": True,
        "gpu": asdict(p.gpu),
        "quant": p.quant,
        "efficiency": asdict(Efficiency()),
        "graph_gap_seconds": GRAPH_GAP,
        "workload": asdict(rehearsal.workload),
        "parts": [asdict(t) for t in p.parts],
        "launches_per_layer": p.launches_per_layer,
        "memory": {
            "total": p.memory.total,
            **{k: dict(getattr(p.memory, k)) for k in ("weights", "caches", "workspace")},
        },
        "fits": p.memory.fits(p.gpu.memory, MEMORY_RESERVE),
        "first_audio_seconds": p.first_audio,
        "streams": {"total": p.streams, "by_time": p.streams_by_time, "by_memory": p.streams_by_memory},
        "fallbacks": list(p.fallbacks),
        "operators": {name: operator_rows(part.calls) for name, part in rehearsal.parts.items()},
    }


def operator_rows(calls: Sequence[Call]) -> list[dict]:
    """Calls that are alike counted together: name, backend, shapes, count, launches, bytes, operations."""
    rows: dict[tuple, dict] = {}
    for c in calls:
        row = rows.setdefault(
            (c.name, c.backend, c.shapes),
            {
                "name": c.name,
                "backend": c.backend,
                "shapes": list(c.shapes),
                "count": 0,
                "launches": 0,
                "bytes": 0,
                "flops": 0,
            },
        )
        row["count"] += 1
        row["launches"] += c.launches
        row["bytes"] += c.cost.num_bytes
        row["flops"] += c.cost.flops
    return list(rows.values())
