"""Every environment variable that the engine reads, typed, with its default and its reason.

``ANTIPHON_BACKEND`` belongs to the kernels (``antiphon_kernels.operator``): which implementation of the operators runs.
"""

from __future__ import annotations

import os

HUB_MODEL = "moonshotai/Kimi-Audio-7B-Instruct"
"""The released checkpoint; fetched through ``huggingface_hub`` on first use, about 40 GB."""


def default_model() -> str:
    """``ANTIPHON_MODEL``: folder or hub name that commands use without ``--model``. Default: the released checkpoint."""
    return os.environ.get("ANTIPHON_MODEL") or HUB_MODEL
