"""What ``pip wheel .`` makes, used away from the checkout: without the compiled module, and with it on a CPU with only AVX2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from itertools import product
from pathlib import Path

import pytest

from antiphon_kernels import native

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CMakeLists.txt", "csrc", "engine", "kernels")
PLATFORM = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
STALE = ("antiphon/removed.py", "antiphon_kernels/_native.stale.so")
"""Left by an earlier build in the folder that setuptools packs."""
ANSWER = """
import sys
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]  # knows the checkout's modules
import antiphon, antiphon_kernels
from antiphon import KimiAudio
from antiphon_kernels import native
assert antiphon.__file__.startswith(sys.argv[1]) and antiphon_kernels.__file__.startswith(sys.argv[1])
print(native.status())
with antiphon_kernels.count_calls() as calls:
    wav, text = KimiAudio(sys.argv[2]).generate(
        [{"role": "user", "message_type": "audio", "content": sys.argv[3]}], output_type="both", seed=1
    )
print(text, wav.shape[1] > 24000, calls["token_step", "native"] > 0)
"""

pytestmark = pytest.mark.slow  # a build, then two answers


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel's contents, built from a copy of the sources without the compiled module."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels = folder / "source", folder / "wheels"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        ignored = {"ignore": shutil.ignore_patterns("*.so", "__pycache__")} if (ROOT / name).is_dir() else {}
        copy(ROOT / name, source / name, **ignored)
    for folder_and_name in product(("build/lib", f"build/lib.{PLATFORM}"), STALE):
        stale = source.joinpath(*folder_and_name)
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_text("left = True")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source)]
    done = subprocess.run(
        command, env={**os.environ, "ANTIPHON_NATIVE": "0"}, capture_output=True, text=True, check=False
    )
    if done.returncode and "Could not find a version" in done.stderr:
        pytest.skip("no package index: pip cannot fetch the build's requirements")
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(next(wheels.glob("antiphon-*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def answer(packages: Path, demo: Path, **env: str) -> list[str]:
    """Lines that :data:`ANSWER` prints where only ``packages`` has Antiphon."""
    question = ROOT / "examples" / "questions" / "p047.wav"
    command = [sys.executable, "-c", ANSWER, str(packages), str(demo), str(question)]
    environment = {**os.environ, "PYTHONPATH": str(packages), **env}
    done = subprocess.run(command, cwd=packages, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_without_the_compiled_module(unpacked, demo):
    status, spoken = answer(unpacked, demo)
    assert native.BUILD_COMMAND in status
    assert spoken == "friday comes after thursday True False"


@pytest.mark.skipif(not native.available, reason="native module not built")
def test_on_avx2(unpacked, demo, tmp_path):
    from antiphon_kernels import _native

    if "avx2" not in _native.available_isas():
        pytest.skip("no AVX2 here")
    packages = shutil.copytree(unpacked, tmp_path / "packages")
    shutil.copy(_native.__file__, packages / "antiphon_kernels")
    status, spoken = answer(packages, demo, ANTIPHON_CPU_ISA="avx2")
    assert "avx2" in status
    assert spoken == "friday comes after thursday True True"


def test_holds_what_is_not_python(unpacked):
    for name in (
        "antiphon/server/console.html",
        "antiphon/planner/kernel_budgets.json",
        "antiphon_kernels/cuda_sources",
    ):
        assert (unpacked / name).exists(), name


@pytest.mark.parametrize("name", STALE)
def test_holds_nothing_of_an_earlier_build(unpacked, name):
    assert not (unpacked / name).exists()
