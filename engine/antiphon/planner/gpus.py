"""Published figures of the GPUs that plans and simulations are made for (dense arithmetic, vendor data sheets)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class GpuSpec:
    """``bf16_flops``: tensor-core operations per second with fp32 accumulation, dense. ``fp8_flops``: 0 where the hardware
    has none. ``bandwidth``: bytes per second of device memory. ``memory``: bytes. ``architecture``: compile target."""

    name: str
    architecture: str
    bf16_flops: float
    fp8_flops: float
    int8_ops: float
    bandwidth: float
    memory: float
    num_sms: int


def _spec(
    name: str, architecture: str, bf16: float, fp8: float, int8: float, gbs: float, gib: float, sms: int
) -> GpuSpec:
    return GpuSpec(name, architecture, bf16 * 1e12, fp8 * 1e12, int8 * 1e12, gbs * 1e9, gib * 2**30, sms)


GPUS = {
    "h100": _spec("NVIDIA H100 SXM5 80 GB", "sm_90", 989, 1979, 1979, 3350, 80, 132),
    "h200": _spec("NVIDIA H200 SXM 141 GB", "sm_90", 989, 1979, 1979, 4800, 141, 132),
    "a100": _spec("NVIDIA A100 SXM4 80 GB", "sm_80", 312, 0, 624, 2039, 80, 108),
    "l4": _spec("NVIDIA L4 24 GB", "sm_89", 121, 242, 242, 300, 24, 58),
    "rtx4090": _spec("NVIDIA GeForce RTX 4090 24 GB", "sm_89", 165, 330, 660, 1008, 24, 128),
    "b200": _spec("NVIDIA B200 180 GB", "sm_100", 2250, 4500, 4500, 8000, 180, 148),
}


def gpu(name: str) -> GpuSpec:
    """The GPU called ``name``; ConfigError lists the known ones."""
    if name not in GPUS:
        raise ConfigError(f"unknown GPU {name!r}; known: {', '.join(sorted(GPUS))}")
    return GPUS[name]
