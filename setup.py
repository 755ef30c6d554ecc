"""Build of the native operators: CMake, Ninja and pybind11 make ``antiphon_kernels._native``.

Everything else is in pyproject.toml. Without a C++ compiler or Python's headers the install is pure Python, and one
line says so; with them, a build that fails is an error. ``ANTIPHON_NATIVE=0`` skips the native build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def missing_for_native() -> str | None:
    """What keeps us from compiling, in words; None when nothing does."""
    if os.environ.get("ANTIPHON_NATIVE") == "0":
        return "ANTIPHON_NATIVE=0"
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not any(shutil.which(name.split()[0]) for name in compilers if name.split()):
        return "no C++ compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "no Python.h (install this Python's development package)"
    return None


class BuildWithCMake(build_ext):
    """Hands the one extension to CMake; objects stay in build/, so a rebuild compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        missing = missing_for_native()
        if missing:
            print(f"antiphon: {missing}; installing without the native CPU operators", file=sys.stderr)
            return
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or 'ninja'}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        shutil.copyfile(build / target.name, fresh)
        os.replace(fresh, target)  # a process that has the old one mapped keeps it


class BuildWithCudaSources(build_py):
    """Puts csrc/cuda into the package, where NVRTC finds it at run time; an editable install reads it from the checkout.

    What an earlier build left in build/lib* goes first: a wheel takes the whole folder, removed modules and old binaries too.
    """

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        for package in {name.partition(".")[0] for name in self.packages}:
            shutil.rmtree(Path(self.build_lib) / package, ignore_errors=True)
        super().run()
        target = Path(self.build_lib) / "antiphon_kernels" / "cuda_sources"
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.[ch]*")):
            shutil.copyfile(source, target / source.name)


setup(
    ext_modules=[Extension("antiphon_kernels._native", sources=[], optional=missing_for_native() is not None)],
    cmdclass={"build_ext": BuildWithCMake, "build_py": BuildWithCudaSources},
)
