"""csrc/cuda compiles with nvcc and with NVRTC for every target, without spills and with 128-bit memory accesses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from antiphon.planner.cuda_kernels import compile_cuda, sources
from antiphon.planner.kernel_compile import tool
from antiphon_kernels import cuda_support
from antiphon_kernels.cuda_support import SOURCES, compile_nvrtc, cubin, expand, target

NAMES = sorted(path.stem for path in SOURCES.glob("*.cu"))
WIDE = re.compile(r"\bLDG\.E\.128\b")


def inspect(binary: bytes, folder) -> tuple[str, str]:
    """Resource usage and instructions of every kernel in a binary."""
    pytest.importorskip("triton")
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    run = [[tool("cuobjdump"), "-res-usage", path], [tool("nvdisasm"), "-c", path]]
    return tuple(subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in run)


def check_binary(binary: bytes, folder) -> None:
    usage, sass = inspect(binary, folder)
    kernels = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert len(kernels) >= 3
    for registers, stack, shared, local in (map(int, k) for k in kernels):
        assert stack == local == 0 and registers <= 96 and shared <= 49152
    assert len(WIDE.findall(sass)) >= len(kernels)


def test_sources_are_there():
    assert NAMES == ["alias_free_snake", "linear_int4", "linear_int8"]


WIDE_SWEEP = pytest.mark.wide


@pytest.mark.parametrize("capability", [80, 90, *(pytest.param(c, marks=WIDE_SWEEP) for c in (86, 89, 100, 120))])
def test_nvrtc(tmp_path, capability):
    """The product's way where no toolkit is installed."""
    if not cuda_support.available:
        pytest.skip("needs cuda-core and nvidia-cuda-nvrtc")
    for name in NAMES:
        check_binary(compile_nvrtc(name, capability), tmp_path)


@pytest.mark.parametrize("capability", [90, *(pytest.param(c, marks=WIDE_SWEEP) for c in (80, 86, 89, 100, 120))])
def test_nvcc(tmp_path, capability):
    """The way of a container that is built ahead."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    for name in NAMES:
        out = tmp_path / f"{name}.cubin"
        command = ["nvcc", "-cubin", f"-arch={target(capability)}", "-O3", "-std=c++17", SOURCES / f"{name}.cu", "-o", out]
        subprocess.run(command, check=True, capture_output=True)
        check_binary(out.read_bytes(), tmp_path)


def test_binaries_are_cached_by_source_and_target(tmp_path, monkeypatch):
    if not cuda_support.available:
        pytest.skip("needs cuda-core and nvidia-cuda-nvrtc")
    monkeypatch.setenv("ANTIPHON_CACHE_DIR", str(tmp_path))
    compiled = []
    monkeypatch.setattr(cuda_support, "compile_nvrtc", lambda name, cc: compiled.append((name, cc)) or b"binary")
    assert [cubin("linear_int8", cc) for cc in (80, 80, 90)] == [b"binary"] * 3
    assert compiled == [("linear_int8", 80), ("linear_int8", 90)]
    monkeypatch.setenv("ANTIPHON_CUBIN_DIR", str(tmp_path))
    (tmp_path / "linear_int8.sm_90a.cubin").write_bytes(b"built ahead")
    assert cubin("linear_int8", 90) == b"built ahead"


def test_the_plan_compiles_every_entry_point(tmp_path):
    if not cuda_support.available:
        pytest.skip("needs cuda-core and nvidia-cuda-nvrtc")
    builds = compile_cuda(sources(), 90, tmp_path)
    assert {b.source for b in builds} == set(NAMES) and len(builds) >= 3 * len(NAMES)
    for b in builds:
        assert f"({b.entry}," in expand(b.source) and b.stack == 0 and 0 < b.registers <= 96 and b.wide_loads > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.sm_90a.cubin" for name in NAMES]


def test_expanded_source_has_every_header_once():
    text = expand("linear_int4")
    assert text.count("struct bfloat16") == 1 and text.count("struct Unit") == 1
    assert not re.search(r'^#include "', text, re.MULTILINE)


def test_a_wheel_contains_the_sources(tmp_path):
    """Where there is no checkout, NVRTC compiles what lies in the package."""
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(command, check=True, capture_output=True, cwd=SOURCES.parents[1], env={**os.environ, "ANTIPHON_NATIVE": "0"})
    packed = tmp_path / "antiphon_kernels" / "cuda_sources"
    assert {p.name for p in SOURCES.glob("*.[ch]*")} == {p.name for p in packed.iterdir()} > {f"{n}.cu" for n in NAMES}
