"""Every environment variable that the kernels read in Python, with its default and its reason.

The native module reads ``ANTIPHON_CPU_ISA`` and ``ANTIPHON_CPU_THREADS`` itself (``antiphon_kernels.native``).
"""

from __future__ import annotations

import os
from pathlib import Path


def backend() -> str:
    """``ANTIPHON_BACKEND``: which implementation of the operators runs. Default: ``auto``, the fastest that is present."""
    return os.environ.get("ANTIPHON_BACKEND", "auto")


def cache_folder() -> Path:
    """``ANTIPHON_CACHE_DIR``: where kernels that were compiled at first use are kept. Default: ``antiphon`` in the user's cache
    folder (``XDG_CACHE_HOME`` or ``~/.cache``), so that the next process does not compile again."""
    base = os.environ.get("ANTIPHON_CACHE_DIR")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "antiphon"


def cubin_folder() -> Path | None:
    """``ANTIPHON_CUBIN_DIR``: CUDA C++ kernels built ahead (csrc/cuda/CMakeLists.txt, ``antiphon plan --warm``). Default: none;
    a container sets it so that nothing is compiled when it starts."""
    folder = os.environ.get("ANTIPHON_CUBIN_DIR")
    return Path(folder) if folder else None
