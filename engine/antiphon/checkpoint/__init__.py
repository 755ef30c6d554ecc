"""Checkpoints in the official layout: configuration, checked and packed weights."""

from .load import (
    Weights,
    load_flow,
    load_llm,
    load_speech_tokenizer,
    load_vocoder,
    load_whisper,
    stream_llm,
)
from .locate import load_model_config

__all__ = [
    "Weights",
    "load_flow",
    "load_llm",
    "load_model_config",
    "load_speech_tokenizer",
    "load_vocoder",
    "load_whisper",
    "stream_llm",
]
