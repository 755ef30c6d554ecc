"""Every environment variable that the engine reads, typed, with its default and its reason.

The kernels read their own (``antiphon_kernels.environment``): ``ANTIPHON_BACKEND``, ``ANTIPHON_CACHE_DIR`` and
``ANTIPHON_CUBIN_DIR``, and in C++ ``ANTIPHON_CPU_ISA`` and ``ANTIPHON_CPU_THREADS``. The build reads ``ANTIPHON_NATIVE`` (setup.py).
"""

from __future__ import annotations

import os

HUB_MODEL = "moonshotai/Kimi-Audio-7B-Instruct"
"""The released checkpoint; fetched through ``huggingface_hub`` on first use."""


def default_model() -> str:
    """``ANTIPHON_MODEL``: folder or hub name that commands use without ``--model``. Default: the released checkpoint."""
    return os.environ.get("ANTIPHON_MODEL") or HUB_MODEL


def api_key() -> str:
    """``ANTIPHON_API_KEY``: a key that clients of ``antiphon serve`` must send. Default: empty, no key is asked for."""
    return os.environ.get("ANTIPHON_API_KEY", "")


def verify_checksums() -> bool:
    """``ANTIPHON_CHECKSUMS``: 0 skips the check of a converted checkpoint's files at loading. Default: 1, as a damaged
    weight is otherwise heard, not seen; it costs one read of the file, some seconds for the released model."""
    return os.environ.get("ANTIPHON_CHECKSUMS", "1") != "0"


def copy_small_pages() -> bool:
    """``ANTIPHON_COPY_WEIGHTS``: 0 leaves a converted checkpoint mapped also where the system keeps its file in small pages.
    Default: 1, as decoding from a copy in large ones is 1.2 to 2 times as fast; it costs the file's size in memory that
    processes do not share."""
    return os.environ.get("ANTIPHON_COPY_WEIGHTS", "1") != "0"


def bench_sizes(on_gpu: bool) -> str:
    """``ANTIPHON_BENCH_SIZES``: sizes of the operator benchmarks, ``full`` (the released model's) or ``toy``. Default: full on a
    GPU, toy elsewhere, where the full sizes take minutes a case."""
    return os.environ.get("ANTIPHON_BENCH_SIZES") or ("full" if on_gpu else "toy")
