"""csrc/cpu/thread_pool.cpp under ThreadSanitizer, in a program of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from guarded_memory import SANITIZED

if SANITIZED:
    pytest.skip("one sanitizer at a time", allow_module_level=True)

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cpu"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """``build(*flags)`` compiles the pool and ``thread_pool_races.cpp``; skips without a compiler that has the sanitizer."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")

    def compiled(*flags: str) -> Path:
        program = tmp_path_factory.mktemp("races") / "races"
        sources = [Path(__file__).with_name("thread_pool_races.cpp"), SOURCES / "thread_pool.cpp"]
        command = [compiler, "-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{SOURCES}", *flags]
        done = run([*command, *sources, "-o", program, "-lpthread"])
        if "libtsan" in done.stderr or "tsan_" in done.stderr:
            pytest.skip("this compiler has no ThreadSanitizer")
        assert done.returncode == 0, done.stderr
        return program

    return compiled


def run(command: list) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_no_races(build):
    done = run([build()])
    assert done.returncode == 0 and not done.stderr, (done.stdout + done.stderr)[:4000]


def test_a_missing_barrier_would_be_seen(build):
    done = run([build("-DWITHOUT_BARRIER")])
    assert "data race" in done.stderr and "two_phases" in done.stderr
