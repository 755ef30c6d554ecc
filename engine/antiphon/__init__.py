"""Antiphon: an inference engine for Kimi-Audio. Names are imported on first use; importing this loads nothing heavy."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# PyTorch's OpenMP threads spin for milliseconds after every operator, on the cores where the native operators' threads are
# to run next. libgomp reads this once, when PyTorch is first imported; what the user has chosen stays.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

__version__ = "0.1.0"

_HOMES = {
    "KimiAudio": "api",
    "TextDelta": "deltas",
    "AudioDelta": "deltas",
    "FinishDelta": "deltas",
    "SamplingParams": "request",
    "StreamSampling": "request",
    "SpeechOptions": "speech",
    "AntiphonError": "errors",
}

__all__ = [
    "AntiphonError",
    "AudioDelta",
    "FinishDelta",
    "KimiAudio",
    "SamplingParams",
    "SpeechOptions",
    "StreamSampling",
    "TextDelta",
    "__version__",
]

if TYPE_CHECKING:
    from .api import KimiAudio
    from .deltas import AudioDelta, FinishDelta, TextDelta
    from .errors import AntiphonError
    from .request import SamplingParams, StreamSampling
    from .speech import SpeechOptions


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'antiphon' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
