"""Converting an official checkpoint: the language model's matrices quantised, every other part linked or copied.

One layer is held at a time, and of its matrices a few thousand rows in float32, so that the released model converts in a
few GB of memory. ``config.json`` is written last: a conversion that was cut short cannot be loaded.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from antiphon_kernels.linear_weight import quantize_weight

from ..config import ModelConfig, QuantizationConfig
from ..errors import CheckpointError, ConfigError
from . import load, quantized
from .activation_scaling import InputRows, MatrixScales, choose_scales
from .locate import SPEECH_TOKENIZER_FOLDER
from .packing import Named
from .safetensors_files import INDEX, SINGLE
from .safetensors_writer import write_tensors

ROWS_AT_A_TIME = 4096
SCHEMES = {"int8": ("int8", "int8"), "int4": ("int4", "int8")}
"""Stored kinds of layers and heads per scheme: heads are the more sensitive, docs/quantisation.md has the measurement."""
Progress = Callable[[str], None]


def quantize_checkpoint(
    config: ModelConfig,
    out: Path,
    scheme: str,
    *,
    heads: str | None = None,
    inputs: InputRows | None = None,
    calibration: str | None = None,
    on_tensor: Progress = lambda name: None,
) -> QuantizationConfig:
    """Write the model of ``config`` to ``out`` with quantised layers and heads.

    Args:
        out: absent or an empty folder.
        scheme: a key of :data:`SCHEMES`.
        heads: ``int8``, ``int4`` or ``bfloat16`` instead of the scheme's own choice.
        inputs: rows that entered each matrix (``antiphon.calibration``), for activation-aware scales; None rounds to nearest.
        calibration: what the rows come from, to be recorded.
        on_tensor: sees the name of every tensor as it is written.

    Raises:
        CheckpointError: the model is converted already, damaged, or ``out`` holds something.
        ConfigError: the scheme is unknown or does not fit the model.
    """
    quantization = replace(check_plan(config, out, scheme, heads), calibration=calibration)
    specs = quantized.packed_specs(config.llm, quantization)
    out.mkdir(parents=True, exist_ok=True)
    _link_other_parts(config, out)
    tensors = _lines_first(_watched(quantized_tensors(config, quantization, inputs or {}), on_tensor))
    digest = write_tensors(out / SINGLE, specs, tensors)
    quantization = replace(quantization, sha256={SINGLE: digest})
    official = json.loads((config.path / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(official | {"quantization_config": quantization.to_json()}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    return quantization


def quantized_tensors(config: ModelConfig, quantization: QuantizationConfig, inputs: InputRows) -> Iterator[Named]:
    """Packed tensors in bfloat16, matrices quantised with their scale behind them, one layer in memory at a time."""
    stream = load.stream_llm(config, torch.bfloat16)
    for prefix, group in itertools.groupby(stream, key=lambda named: named[0].rpartition(".")[0]):
        if not prefix.startswith(("trunk.", "upper.")):
            for name, weight in group:
                yield from quantize_tensor(name, weight, quantization.heads if name in quantized.HEADS else None)
            continue
        layer = {name.rpartition(".")[2]: quantized.pad_inner(name, weight) for name, weight in group}
        yield from _layer(prefix, layer, quantization.layers, config, inputs)


def quantize_tensor(
    name: str, weight: torch.Tensor, scheme: str | None, scales: MatrixScales | None = None
) -> Iterator[Named]:
    """``weight`` [B, out, in] or [out, in] under its name, or its integers and then their scale; the factors of ``scales``
    are multiplied in first."""
    if scheme in (None, "bfloat16"):
        yield name, weight
        return
    pieces = []
    for begin in range(0, weight.shape[-2], ROWS_AT_A_TIME):
        piece = weight[..., begin : begin + ROWS_AT_A_TIME, :].float()
        if scales is not None:
            piece *= scales.columns[..., None, :]
            piece *= scales.rows[..., begin : begin + ROWS_AT_A_TIME, None]
        pieces.append(quantize_weight(piece, scheme, scales and scales.importance))
    yield name, torch.cat([integers for integers, _ in pieces], dim=-2)
    yield f"{name}.scale", torch.cat([scale for _, scale in pieces], dim=-1)


def _layer(
    prefix: str, layer: Mapping[str, torch.Tensor], scheme: str, config: ModelConfig, inputs: InputRows
) -> Iterator[Named]:
    if scheme == "bfloat16" or f"{prefix}.down" not in inputs:
        scales = None
    else:
        rows = {name: inputs[f"{prefix}.{name}"] for name in quantized.MATRICES}
        scales = choose_scales(layer, rows, scheme, config.llm)
    for name, weight in layer.items():
        if name in quantized.MATRICES:
            yield from quantize_tensor(f"{prefix}.{name}", weight, scheme, scales and scales.of(name))
        else:
            yield f"{prefix}.{name}", weight if scales is None else scales.others[name]


def check_plan(config: ModelConfig, out: Path, scheme: str, heads: str | None = None) -> QuantizationConfig:
    """What will be stored, before anything is read; raises as :func:`quantize_checkpoint`."""
    if config.quantization is not None:
        raise CheckpointError(
            f"{config.path} is converted already (layers {config.quantization.layers}); give the official checkpoint"
        )
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    layers, default = SCHEMES[scheme]
    if heads is not None and heads not in QuantizationConfig.STORED:
        raise ConfigError(f"heads {heads!r}: expected one of {', '.join(QuantizationConfig.STORED)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is not an empty folder; give a new one")
    plan = QuantizationConfig(layers, heads or default, None, {})
    quantized.packed_specs(config.llm, plan)
    return plan


def _link_other_parts(config: ModelConfig, out: Path) -> None:
    """Everything but the language model's files and ``config.json``, and the speech tokenizer wherever it lies."""
    skipped = {config.path / "config.json", config.path / INDEX, *config.path.glob("*.safetensors")}
    folders = [(config.path, out)]
    if config.speech_tokenizer_path.parent != config.path:
        folders.append((config.speech_tokenizer_path, out / SPEECH_TOKENIZER_FOLDER))
    for source, target in folders:
        for path in sorted(source.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
            if path.is_file() and path not in skipped and not hidden:
                _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _lines_first(tensors: Iterable[Named]) -> Iterator[Named]:
    """In the order of :func:`quantized.packed_specs`: what does not fill cache lines, which is small, comes last."""
    held: list[Named] = []
    for name, tensor in tensors:
        if quantized.fills_lines(tuple(tensor.shape), tensor.dtype):
            yield name, tensor
        else:
            held.append((name, tensor))
    yield from held


def _watched(tensors: Iterable[Named], on_tensor: Progress) -> Iterator[Named]:
    for name, tensor in tensors:
        on_tensor(name)
        yield name, tensor
