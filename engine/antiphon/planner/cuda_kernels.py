"""The CUDA C++ kernels of csrc/cuda compiled for a GPU that is not there, with NVRTC, and their resources read back."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antiphon_kernels import cuda_support

from .kernel_compile import WIDE_LOAD, WIDE_STORE, tool

RESOURCES = re.compile(r"Function (\S+?):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class CudaBuild:
    """One entry point of one source: registers per thread, shared bytes per block, stack bytes per thread (spills)."""

    source: str
    entry: str
    capability: int
    registers: int
    shared: int
    stack: int
    wide_loads: int
    wide_stores: int

    @property
    def label(self) -> str:
        return f"csrc/cuda/{self.source}.cu:{self.entry}"


def sources() -> list[str]:
    """Stems of the kernel sources; none where they are not installed."""
    return sorted(path.stem for path in cuda_support.SOURCES.glob("*.cu")) if cuda_support.SOURCES else []


def compile_cuda(names: Sequence[str], capability: int, warm: Path | None = None) -> list[CudaBuild]:
    """Every entry point of the sources ``names`` for one architecture; nothing without NVRTC.

    ``warm``: keep the binaries there, for ``ANTIPHON_CUBIN_DIR``.
    """
    if not cuda_support.available:
        return []
    builds = []
    for name in names:
        binary = cuda_support.compile_nvrtc(name, capability)
        if warm is not None:
            warm.mkdir(parents=True, exist_ok=True)
            (warm / f"{name}.{cuda_support.target(capability)}.cubin").write_bytes(binary)
        builds += inspect(name, binary, capability)
    return builds


def inspect(source: str, binary: bytes, capability: int) -> list[CudaBuild]:
    """Resources of every entry point in a binary; 128-bit accesses from its own instructions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(binary)
        run = [[tool("cuobjdump"), "-res-usage", path], [tool("nvdisasm"), "-c", path]]
        usage, sass = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in run)
    code = dict(re.findall(r"\.section\s+\.text\.(\S+?),.*?\n(.*?)(?=\n\s*//-+ \.text|\Z)", sass, re.DOTALL))
    return [
        CudaBuild(
            source, entry, capability, int(registers), int(shared), int(stack) + int(local),
            len(WIDE_LOAD.findall(code[entry])), len(WIDE_STORE.findall(code[entry])),
        )
        for entry, registers, stack, shared, local in sorted(RESOURCES.findall(usage))
    ]  # fmt: skip
