"""The compiled module: instruction sets, threads, and life without it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from antiphon_kernels import native


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p), **env}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def run_native(code: str, **env: str) -> subprocess.CompletedProcess:
    """``code`` with the compiled module as ``_native``, loaded without the package and PyTorch."""
    from antiphon_kernels import _native

    folder = os.path.dirname(_native.__file__)
    return run_python(f"import os, sys; sys.path.insert(0, {folder!r}); import _native; {code}", **env)


def test_status_names_isa_or_build_command():
    assert native.BUILD_COMMAND in native.status() or "threads" in native.status()


def test_import_without_compiled_module_names_the_command():
    code = (
        "import logging, sys; logging.basicConfig(level='INFO')\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'antiphon_kernels._native' else real(n, *a)\n"
        "import antiphon, antiphon_kernels.native as n; assert not n.available; print(n.status())"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert native.BUILD_COMMAND in done.stdout and native.BUILD_COMMAND in done.stderr


@pytest.mark.skipif(not native.available, reason="native module not built")
class TestCompiled:
    def test_isa_can_be_forced_by_the_environment(self):
        from antiphon_kernels import _native

        for isa in _native.available_isas():
            done = run_native("print(_native.isa())", ANTIPHON_CPU_ISA=isa)
            assert done.stdout.strip() == isa, done.stderr

    def test_unknown_isa_is_an_error_that_lists_the_known(self):
        from antiphon_kernels import _native

        with pytest.raises(ValueError, match="scalar"):
            _native.set_isa("sse9")

    def test_thread_count_comes_from_affinity_and_can_be_set(self):
        from antiphon_kernels import _native

        code = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(_native.num_threads())"
        done = run_native(code, ANTIPHON_CPU_THREADS="")
        assert done.stdout.strip() == "1"
        with pytest.raises(ValueError):
            _native.set_num_threads(0)
