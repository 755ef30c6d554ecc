"""Times of recorded parts on a named GPU: per call, bytes over bandwidth or operations over arithmetic, whichever is longer.

Two figures: ``roofline`` at the published figures, which nothing can beat, and ``projected`` at assumed shares of them plus
a gap per launch. Both are projections, never measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from .gpus import GpuSpec
from .recorder import Call, Part
from .step_costs import Efficiency

CLOCK = {"sm_80": 1.41e9, "sm_89": 2.3e9, "sm_90": 1.98e9, "sm_100": 1.85e9}
LANES = {"sm_80": 64}
GRAPH_GAP = 1.0e-6
"""Assumed seconds between two kernels of a CUDA graph that do not overlap."""


@dataclass(frozen=True)
class PartTime:
    """Seconds of one part; ``memory_share``: of the roofline, spent in calls that the memory bounds."""

    name: str
    launches: int
    num_bytes: int
    flops: int
    roofline: float
    projected: float
    memory_share: float
    peak: int


def fp32_flops(gpu: GpuSpec) -> float:
    """Operations per second outside the tensor cores: multiply-add lanes times clock."""
    return gpu.num_sms * LANES.get(gpu.architecture, 128) * 2 * CLOCK.get(gpu.architecture, 1.8e9)


def part_time(part: Part, gpu: GpuSpec, efficiency: Efficiency | None = None) -> PartTime:
    """Roofline and projected time of a recorded part."""
    e = efficiency or Efficiency()
    roofline = projected = in_memory = 0.0
    for call in part.calls:
        memory, arithmetic = call.cost.num_bytes / gpu.bandwidth, call.cost.flops / peak_flops(call, gpu)
        share = e.vocoder_conv if call.name.endswith("convolution") else e.gemm
        roofline += max(memory, arithmetic)
        in_memory += memory if memory >= arithmetic else 0.0
        projected += max(memory / e.bandwidth, arithmetic / share) + GRAPH_GAP * call.launches
    return PartTime(
        part.name,
        part.launches,
        part.num_bytes,
        part.flops,
        roofline,
        projected,
        in_memory / max(roofline, 1e-12),
        part.peak,
    )


def peak_flops(call: Call, gpu: GpuSpec) -> float:
    """Tensor cores for products and attention in 16 bits, plain arithmetic otherwise."""
    if call.name in ("linear_fp8", "linear_fp8_silu_mul"):
        return gpu.fp8_flops or gpu.bf16_flops
    if call.name.rpartition("/")[2] not in MATRIX or any(s.startswith("float32") for s in call.shapes[:2]):
        return fp32_flops(gpu)
    return gpu.bf16_flops


MATRIX = {
    "linear", "linear_silu_mul", "linear_int8", "linear_int8_silu_mul", "linear_int4", "linear_int4_silu_mul",
    "paged_attention", "flow_attention", "encoder_attention", "addmm", "mm", "bmm", "convolution",
}  # fmt: skip
