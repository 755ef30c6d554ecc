"""The model card: what a checkpoint holds and what it will take in memory, from headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import expected, load, locate, quantized, source
from .checkpoint.load import Weights
from .checkpoint.safetensors_files import SINGLE
from .checkpoint.source import Source
from .config import LlmConfig, ModelConfig

Loader = Callable[[ModelConfig, torch.dtype, str], Weights]


@dataclass(frozen=True)
class PartCard:
    """One part: ``stored`` bytes per dtype of the tensors that are used; ``dtype`` and ``num_bytes`` once loaded."""

    name: str
    files: tuple[Path, ...]
    num_tensors: int
    num_parameters: int
    num_extras: int
    stored: dict[str, int]
    dtype: str
    num_bytes: int


@dataclass(frozen=True)
class ModelCard:
    """All parts of a checkpoint; ``str()`` is the text that ``antiphon inspect`` prints."""

    config: ModelConfig
    parts: tuple[PartCard, ...]
    kv_bytes_per_token: dict[str, int]

    @property
    def num_parameters(self) -> int:
        return sum(part.num_parameters for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Memory of all weights once loaded."""
        return sum(part.num_bytes for part in self.parts)

    def format(self) -> str:
        """The card as text: sizes, one table row per part, cache size."""
        lines = [f"{self.config.path}", *(f"  {line}" for line in _sizes(self.config)), ""]
        lines += _table([_HEADINGS, *(_row(part) for part in self.parts), self._total()])
        kv = ", ".join(f"{group} {size:,}" for group, size in self.kv_bytes_per_token.items())
        return "\n".join([*lines, "", f"KV cache per position, bytes: {kv}"])

    __str__ = format

    def _total(self) -> tuple[str, ...]:
        stored = sum(sum(part.stored.values()) for part in self.parts)
        tensors = str(sum(part.num_tensors for part in self.parts))
        return ("total", tensors, _count(self.num_parameters), _bytes(stored), "", _bytes(self.num_bytes), "")


def model_card(
    path: str | Path,
    speech_tokenizer: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    speech_tokenizer_dtype: torch.dtype = torch.float32,
) -> ModelCard:
    """Read the configuration and every header of the model at ``path``, a folder or a hub name; no weights are read.

    DiT and vocoder are left out where the model has neither. The dtypes are those the weights would be loaded in.

    Raises:
        CheckpointError, ConfigError: as when loading; all keys and shapes are checked.
    """
    folder = locate.resolve(path)
    speaks = (folder / "audio_detokenizer").exists() or (folder / "vocoder").exists()
    config = locate.load_model_config(folder, speech_tokenizer, load_detokenizer=speaks)
    parts = [
        _part("language model", _llm_source(config), load.load_llm, config, dtype),
        _part("Whisper encoder", source.whisper_source(config), load.load_whisper, config, dtype),
        _part(
            "speech tokenizer",
            source.speech_tokenizer_source(config),
            load.load_speech_tokenizer,
            config,
            speech_tokenizer_dtype,
        ),
    ]
    if speaks:
        parts.append(_part("flow matching", source.flow_source(config), load.load_flow, config, dtype))
        parts.append(_part("vocoder", source.vocoder_source(config), load.load_vocoder, config, dtype))
    return ModelCard(config, tuple(parts), kv_bytes_per_token(config.llm, dtype))


def kv_bytes_per_token(c: LlmConfig, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of keys and values per position, by group of layers."""
    layer = 2 * c.num_kv_heads * c.head_dim * dtype.itemsize
    return {
        "trunk": c.num_trunk_layers * layer,
        "text branch": c.num_text_layers * layer,
        "audio branch": c.num_audio_layers * layer,
    }


def _llm_source(config: ModelConfig) -> Source:
    """A converted model's own tensors, beside the official shapes that they stand for."""
    if config.quantization is None:
        return source.llm_source(config)
    stored = quantized.stored_llm(config)
    return Source(config.path / SINGLE, expected.llm_keys(config.llm), stored)


def _part(name: str, part: Source, loader: Loader, config: ModelConfig, dtype: torch.dtype) -> PartCard:
    stored: Counter[str] = Counter()
    for tensor in part.tensors.values():
        stored[str(tensor.dtype).removeprefix("torch.")] += tensor.num_bytes
    packed = loader(config, dtype, "meta")
    return PartCard(
        name=name,
        files=part.files(),
        num_tensors=len(part.tensors),
        num_parameters=sum(map(math.prod, part.shapes.values())),
        num_extras=len(part.extras),
        stored=dict(stored.most_common()),
        dtype=", ".join(dict.fromkeys(str(kind).removeprefix("torch.") for kind in _kinds(packed, dtype))),
        num_bytes=sum(weight.numel() * weight.element_size() for weight in packed.values()),
    )


def _kinds(packed: Weights, dtype: torch.dtype) -> list[torch.dtype]:
    """The dtype asked for, then those that quantised matrices have; scales do not count."""
    return [dtype, *(w.dtype for name, w in packed.items() if f"{name}.scale" in packed)]


_HEADINGS = ("part", "tensors", "parameters", "stored", "loaded as", "memory", "")


def _row(part: PartCard) -> tuple[str, ...]:
    stored = ", ".join(f"{name} {_bytes(size)}" for name, size in part.stored.items())
    notes = [f"{len(part.files)} files"] if len(part.files) > 1 else []
    notes += [f"{part.num_extras} extra tensors unused"] if part.num_extras else []
    parameters = _count(part.num_parameters)
    return (part.name, str(part.num_tensors), parameters, stored, part.dtype, _bytes(part.num_bytes), ", ".join(notes))


def _sizes(config: ModelConfig) -> list[str]:
    c, w, t = config.llm, config.whisper, config.speech_tokenizer
    layers = f"{c.num_trunk_layers} trunk + {c.num_text_layers} text + {c.num_audio_layers} audio"
    heads = f"{c.num_heads} / {c.num_kv_heads} of {c.head_dim}"
    vocabulary = f"{c.vocab_size} ({c.vocab_size - c.audio_token_offset} audio)"
    lines = [
        f"language model: hidden {c.hidden_size}, layers {layers}, heads {heads}, vocabulary {vocabulary}",
        f"Whisper encoder: width {w.d_model}, layers {w.num_layers}, heads {w.num_heads}",
        f"speech tokenizer: width {t.encoder.d_model}, layers {t.encoder.num_layers}, codebook {t.codebook_size}",
    ]
    if q := config.quantization:
        how = f"calibrated on {q.calibration}" if q.calibration else "rounded to nearest"
        lines.insert(1, f"quantised: layers {q.layers}, heads {q.heads}, {how}")
    if config.flow is None or config.vocoder is None:
        return [*lines, "no detokenizer: text output only"]
    f, v = config.flow, config.vocoder
    channels = v.upsample_initial_channel
    return [
        *lines,
        f"flow matching: width {f.hidden_size}, layers {f.depth}, heads {f.num_heads}, mel bins {f.num_mels}",
        f"vocoder: channels {channels} to {channels >> len(v.upsample_rates)}, hop {v.hop}, {v.sample_rate} Hz",
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = {1, 2, 5}
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _count(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.2f} B"
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
