"""The kernels that a rehearsal met, compiled for its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antiphon_kernels.triton_support import Launch, available

from .gpus import GpuSpec
from .kernel_compile import SHARED_LIMIT, Build, compile_launches, unique


def compile_kernels(launches: Sequence[Launch], gpu: GpuSpec, warm: Path | None = None) -> list[Build]:
    """Every distinct specialisation for the GPU's own architecture; ``warm`` keeps the binaries in Triton's cache layout."""
    if not available:
        return []
    capability = int(gpu.architecture.removeprefix("sm_"))
    if warm is not None:
        warm.mkdir(parents=True, exist_ok=True)
    return compile_launches({capability: unique(launches)}, cache=warm)


def kernel_lines(builds: Sequence[Build]) -> list[str]:
    """A table of resources, with what is wrong said in capitals."""
    lines = [f"{'registers':>9s} {'shared':>8s} {'spills':>7s} {'mma':>5s} {'128-bit':>8s}  kernel"]
    for b in builds:
        over = "  TOO MUCH SHARED MEMORY" if b.shared > SHARED_LIMIT[b.capability] else ""
        lines.append(
            f"{b.registers:9d} {b.shared:8d} {b.stack:7d} {b.mma:5d} {b.wide_loads:8d}  {b.label}"
            f"{'  SPILLS' if b.stack else ''}{over}"
        )
    return [*lines, f"{len(builds)} kernels compiled for sm_{builds[0].capability if builds else '?'}"]
