"""The draft of a model: the same language model with quantised matrices, which proposes what the model then checks.

It shares every tensor that is not quantised, and the pages of keys and values, with the model. What it proposes only
decides how fast the tokens come, never which (csrc/cpu/token_step.h).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from antiphon_kernels import native
from antiphon_kernels.linear_weight import dequantize_weight
from antiphon_kernels.weights_memory import WeightsMemory

from . import checkpoint
from .checkpoint import quantized
from .checkpoint.packing import Named
from .checkpoint.quantize import SCHEMES, quantize_tensor
from .config import ModelConfig, QuantizationConfig
from .errors import ConfigError
from .models.dual_qwen import DualQwen


def check_draft(draft: str | Path, config: ModelConfig, device: torch.device) -> None:
    """ConfigError unless ``draft`` is a scheme or a folder, and a model of ``config`` can have one on ``device``."""
    if draft not in SCHEMES and not Path(draft).is_dir():
        raise ConfigError(
            f"draft {str(draft)!r}: expected {', '.join(SCHEMES)}, or the folder of a checkpoint that `antiphon quantize` "
            "made"
        )
    if config.quantization is not None:
        raise ConfigError(
            f"a draft is checked by unquantised weights, and {config.path} has {config.quantization.layers} layers; load "
            "the official checkpoint, or this one without a draft"
        )
    if device.type != "cpu":
        raise ConfigError(
            f"a draft needs the native decode step of a CPU, not {str(device)!r}; use device='cpu' or no draft"
        )
    if not native.available:
        raise ConfigError(f"a draft needs the native decode step; {native.status()}, or load the model without a draft")


def load_draft(draft: str | Path, config: ModelConfig, model: DualQwen) -> DualQwen:
    """The draft of ``model``: quantised now, one matrix at a time, or mapped from the files of a converted checkpoint.

    Raises:
        ConfigError: the scheme does not fit the model, or the folder is not a conversion of it.
        CheckpointError: its files are missing or damaged.
    """
    if draft in SCHEMES:
        matrices = quantized_matrices(config, model, str(draft))
    else:
        matrices = converted_matrices(Path(draft), config, model)
    weights = dict(model.weights)
    weights.update(matrices)
    return DualQwen(model.config, weights)


def draft_bytes(draft: DualQwen, model: DualQwen) -> int:
    """What a draft holds beside its model."""
    own = (t for name, t in draft.weights.items() if t is not model.weights.get(name))
    return sum(t.nbytes for t in own)


def quantized_matrices(config: ModelConfig, model: DualQwen, scheme: str) -> Iterator[Named]:
    """The model's matrices in ``scheme``, rounded to nearest, with their scales."""
    layers, heads = SCHEMES[scheme]
    plan = QuantizationConfig(layers, heads, None, {})
    quantized.packed_specs(config.llm, plan)  # refuses what does not fit
    memory = WeightsMemory()
    for name in model.weights:
        stored = quantized.scheme_of(name, plan)
        if stored is None:
            continue
        for kind, tensor in quantize_tensor(name, quantized.pad_inner(name, _plain(model, name)), stored):
            yield kind, memory.empty(tensor.shape, tensor.dtype).copy_(tensor)


def _plain(model: DualQwen, name: str) -> torch.Tensor:
    """A matrix of the model in its floats."""
    weight, codes = model.weights[name], model.weights.get(f"{name}.scale")
    return weight if codes is None else dequantize_weight(weight, codes, model.embed_table.dtype)


def converted_matrices(folder: Path, config: ModelConfig, model: DualQwen) -> Iterator[Named]:
    """The matrices of a converted checkpoint, as they lie in its file."""
    found = checkpoint.load_model_config(folder, config.speech_tokenizer_path, load_detokenizer=False)
    plan = found.quantization
    if plan is None:
        raise ConfigError(
            f"draft {folder}: expected a converted checkpoint, this one is not; make one with `antiphon quantize`, or "
            f"give {' or '.join(SCHEMES)} to quantise the model as it is loaded"
        )
    if plan.calibration is not None:  # its keys and values would not be those that the pages hold
        raise ConfigError(
            f"draft {folder}: its scales come from {plan.calibration}, and calibrated layers have values of another "
            "scale than the model's; convert without --calibrate"
        )
    if found.llm != config.llm:
        raise ConfigError(
            f"draft {folder}: its language model has other sizes than that of {config.path}; convert that one"
        )
    for name, tensor in quantized.stream_quantized(found, model.embed_table.dtype, model.embed_table.device):
        if quantized.scheme_of(name.removesuffix(".scale"), plan) is not None:
            yield name, tensor
