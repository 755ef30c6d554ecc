"""The CUDA C++ kernels of csrc/cuda: found, compiled with NVRTC where no binary was built ahead, cached, launched.

A kernel's binary is looked for in ``ANTIPHON_CUBIN_DIR`` (``<name>.sm_<arch>.cubin``, what csrc/cuda/CMakeLists.txt builds), then in
the cache under a name that hashes the sources, the target and the compiler, then made with NVRTC through ``cuda.core`` and
kept there. Nothing here runs at import; machines without cuda-python simply lack the ``cuda`` backend.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from . import environment

SOURCES = next(
    (p for p in (Path(__file__).parent / "cuda_sources", Path(__file__).parents[2] / "csrc" / "cuda") if p.is_dir()), None
)
available = SOURCES is not None and importlib.util.find_spec("cuda") is not None and bool(
    importlib.util.find_spec("cuda.core")
)
FEATURES = {90: "90a", 100: "100a", 120: "120a"}
"""Targets whose architecture-specific instructions are wanted."""


def target(capability: int) -> str:
    """NVRTC and nvcc name of a compute capability: 80 → ``sm_80``, 90 → ``sm_90a``."""
    return f"sm_{FEATURES.get(capability, capability)}"


def expand(name: str) -> str:
    """``<name>.cu`` with its headers written in their places, as one source text; each header once."""
    seen: set[str] = set()

    def read(path: Path) -> list[str]:
        lines: list[str] = []
        for line in path.read_text().splitlines():
            if line.startswith('#include "') and (included := line.split('"')[1]) != "cpu_exec.h":
                if included not in seen:
                    seen.add(included)
                    lines += read(path.parent / included)
            elif line.strip() not in ("#pragma once", '#include "cpu_exec.h"'):
                lines.append(line)
        return lines

    return "\n".join(read(SOURCES / f"{name}.cu")) + "\n"


def compile_nvrtc(name: str, capability: int) -> bytes:
    """Binary of ``<name>.cu`` for a compute capability; no GPU and no toolkit needed. Raises the compiler's own error."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=target(capability), std="c++17")
    return bytes(Program(expand(name), "c++", options=options).compile("cubin").code)


def cubin(name: str, capability: int) -> bytes:
    """Binary of ``<name>.cu``: built ahead, cached, or compiled now."""
    ahead = environment.cubin_folder()
    for suffix in (target(capability), f"sm_{capability}"):
        if ahead and (path := ahead / f"{name}.{suffix}.cubin").is_file():
            return path.read_bytes()
    digest = hashlib.sha256(f"{expand(name)}{target(capability)}{_nvrtc_version()}".encode()).hexdigest()[:24]
    kept = environment.cache_folder() / "cubin" / f"{name}.{target(capability)}.{digest}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    code = compile_nvrtc(name, capability)
    kept.parent.mkdir(parents=True, exist_ok=True)
    scratch = kept.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(code)
    scratch.replace(kept)
    return code


@lru_cache
def _nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    return "{}.{}".format(*nvrtc.nvrtcVersion()[1:])


@lru_cache
def _kernel(source: str, entry: str, device: int) -> Any:
    """The loaded kernel ``entry`` of ``<source>.cu`` on a device; loading is the first thing that needs a GPU."""
    from cuda.core import ObjectCode

    major, minor = torch.cuda.get_device_capability(device)
    return ObjectCode.from_cubin(cubin(source, 10 * major + minor)).get_kernel(entry)


class _TorchStream:
    """PyTorch's current stream, as cuda.core asks for streams."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, torch.cuda.current_stream().cuda_stream


class Int64(int):
    """An int that the kernel takes as 64 bits."""


def packed_argument(value: torch.Tensor | int | None) -> Any:
    """A kernel argument as cuda.core takes it: an address, null, or a numpy int of the parameter's width."""
    import numpy as np

    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if value is None:
        return 0
    return np.int64(value) if isinstance(value, Int64) else np.int32(value)


def launch(source: str, entry: str, blocks: int, threads: int, *args: torch.Tensor | int | None) -> None:
    """Start a kernel on PyTorch's current stream."""
    from cuda.core import Device, LaunchConfig
    from cuda.core import launch as start

    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    with torch.cuda.device(device):
        current = Device(device.index)
        current.set_current()
        stream = current.create_stream(_TorchStream())
        config = LaunchConfig(grid=blocks, block=threads)
        start(stream, config, _kernel(source, entry, device.index), *map(packed_argument, args))


SKINNY_ROWS = (1, 4, 8)
"""Row counts that csrc/cuda/linear_int*.cu is instantiated for; a branch may have fewer."""


def launch_skinny(
    name: str, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """``linear_int8`` or ``linear_int4`` for at most 8 rows per branch; x bfloat16 or float16, rows 16-byte aligned."""
    num_rows, inputs = x.shape
    rows, outputs = max(split, num_rows - split), weight.shape[1]
    if rows > SKINNY_ROWS[-1] or inputs % 128 or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"{name}: at most 8 rows of a multiple of 128 16-bit inputs, got {tuple(x.shape)} {x.dtype}, split {split}")
    x, out = x.contiguous(), torch.empty(num_rows, outputs, dtype=x.dtype, device=x.device)
    most = next(n for n in SKINNY_ROWS if n >= rows)
    entry = f"{name}_{str(x.dtype).removeprefix('torch.')}_{most}"
    blocks = weight.shape[0] * -(-outputs // 4)
    launch(name, entry, blocks, 128, x, weight, scale, bias, out, Int64(inputs), num_rows, split, inputs, outputs)
    return out
