"""The csrc/cuda kernels built for the CPU, plain and under ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"


def build(folder: Path, *flags: str) -> Path:
    """``run_kernels`` compiled by g++; the test is skipped without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    program = folder / "run_kernels"
    command = [compiler, "-std=c++20", "-O1", "-g", "-Wall", "-Wno-unknown-pragmas", "-x", "c++", f"-I{SOURCES}", *flags]
    subprocess.run([*command, str(Path(__file__).with_name("run_kernels.cpp")), "-o", str(program), "-lpthread"], check=True)
    return program


@pytest.fixture(scope="session")
def build_kernels(tmp_path_factory):
    """``build_kernels(*flags)`` compiles ``run_kernels`` once more."""
    return lambda *flags: build(tmp_path_factory.mktemp("variant"), *flags)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> Path:
    """The plain build."""
    return build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def kernels_tsan(tmp_path_factory) -> Path:
    """The build under ThreadSanitizer."""
    return build(tmp_path_factory.mktemp("tsan"), "-fsanitize=thread")


def raw(*tensors: torch.Tensor | None) -> bytes:
    """Their memory, one after the other."""
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t is not None)


def run_program(program: Path, arguments: list, inputs: bytes, like: torch.Tensor) -> torch.Tensor:
    """Run a kernel; its output has the shape and dtype of ``like``. Any message (of ThreadSanitizer, say) is a failure."""
    done = subprocess.run([program, *map(str, arguments)], input=inputs, capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()[:3000]
    return torch.frombuffer(bytearray(done.stdout), dtype=like.dtype).view(like.shape)


@pytest.fixture
def run():
    """:func:`run_program` with tensors as inputs."""
    return lambda program, arguments, tensors, like: run_program(program, arguments, raw(*tensors), like)
