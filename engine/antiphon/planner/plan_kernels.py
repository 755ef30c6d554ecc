"""The kernels that a rehearsal met, compiled for its GPU."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from antiphon_kernels.triton_support import Launch, available

from .cuda_kernels import CudaBuild, compile_cuda, sources
from .gpus import GpuSpec
from .kernel_compile import SHARED_LIMIT, Build, compile_launches, unique

logger = logging.getLogger(__name__)
CRASHED = "exit status -"
"""A worker ended by a signal. Triton's compiler does that now and then on a loaded machine, on no kernel in particular."""
RETRIES = 2


def compile_kernels(launches: Sequence[Launch], gpu: GpuSpec, warm: Path | None = None) -> list[Build]:
    """Every distinct specialisation for the GPU's own architecture; ``warm`` keeps the binaries in Triton's cache layout."""
    if not available:
        return []
    capability = int(gpu.architecture.removeprefix("sm_"))
    with tempfile.TemporaryDirectory() as scratch:
        cache = warm or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        for _ in range(RETRIES):
            try:
                return compile_launches({capability: unique(launches)}, cache=cache)
            except RuntimeError as error:
                if CRASHED not in str(error):
                    raise
                logger.warning("the compiler crashed; what is compiled is kept, the rest is tried again")
        return compile_launches({capability: unique(launches)}, cache=cache)


def compile_cuda_sources(gpu: GpuSpec, warm: Path | None = None) -> list[CudaBuild]:
    """Every kernel of csrc/cuda for the GPU's own architecture; ``warm``/cubin keeps the binaries for ``ANTIPHON_CUBIN_DIR``."""
    return compile_cuda(sources(), int(gpu.architecture.removeprefix("sm_")), warm and warm / "cubin")


def kernel_lines(builds: Sequence[Build | CudaBuild]) -> list[str]:
    """A table of resources, with what is wrong said in capitals."""
    lines = [f"{'registers':>9s} {'shared':>8s} {'spills':>7s} {'mma':>5s} {'128-bit':>8s}  kernel"]
    for b in builds:
        over = "  TOO MUCH SHARED MEMORY" if b.shared > SHARED_LIMIT[b.capability] else ""
        mma = f"{b.mma:5d}" if isinstance(b, Build) else "    -"
        lines.append(
            f"{b.registers:9d} {b.shared:8d} {b.stack:7d} {mma} {b.wide_loads:8d}  {b.label}"
            f"{'  SPILLS' if b.stack else ''}{over}"
        )
    return [*lines, f"{len(builds)} kernels compiled for sm_{builds[0].capability if builds else '?'}"]
