"""Plain bfloat16 matrices made compact as they are loaded: the same weights, bit for bit, in 12 bits each.

A step of decoding on a CPU takes as long as its weights take to be read (``antiphon_kernels.linear_compact``). A model that works in
float32 has the weights of its bfloat16 files, widened; in 12 bits they are three eighths of the bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch

from antiphon_kernels import native
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.weights_memory import WeightsMemory, empty_apart

from ..config import ModelConfig
from ..errors import ConfigError
from .packing import Named
from .quantized import HEADS, MATRICES
from .source import llm_source

logger = logging.getLogger(__name__)


def resolve_compact(chosen: bool | None, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model's matrices are made compact; None: where they then decode faster, except those of a converted
    checkpoint that can stay pages of its file.

    Raises:
        ConfigError: asked for where it cannot be.
        CheckpointError: files that it must look at are missing or damaged.
    """
    if chosen is False or (chosen is None and not native.prefers_compact(dtype)):
        return False
    problem = obstacle(device) or obstacle_in_files(config, dtype)
    if chosen is None:
        stays = config.quantization is not None and dtype == torch.bfloat16
        return problem is None and not stays
    if problem is not None:
        raise ConfigError(f"{problem}, or do not ask for them")
    return True


def obstacle(device: torch.device) -> str | None:
    """Why no matrix can be compact, and what to change, or None."""
    if device.type != "cpu":
        return f"compact weights need the native operators of a CPU, not {str(device)!r}; use device='cpu'"
    if not native.available:
        return f"compact weights need the native operators of a CPU; {native.status()}"
    return None


def obstacle_in_files(config: ModelConfig, dtype: torch.dtype) -> str | None:
    """The same of a language model's matrices, for one that is to work in ``dtype``."""
    if config.quantization is not None:
        if config.quantization.heads == "bfloat16":
            return None
        kinds = f"{config.quantization.layers} layers and {config.quantization.heads} heads"
        return f"compact weights are bfloat16, and {config.path} has {kinds}; load the official checkpoint"
    if dtype == torch.bfloat16:
        return None
    others = {t.dtype for t in llm_source(config).tensors.values()} - {torch.bfloat16}
    if not others:
        return None
    kinds = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in others))
    return f"compact weights are bfloat16, and {config.path} has weights in {kinds} that {dtype} keeps; use dtype='bfloat16'"


def compact_matrices(tensors: Iterable[Named], dtype: torch.dtype = torch.bfloat16) -> Iterator[Named]:
    """Packed tensors by name; of bfloat16 matrices their bytes and, behind them, their codes as ``X.scale``.

    One plain matrix is held at a time. What does not fit the format comes plain, bfloat16 in ``dtype`` unless it is a scale.
    """
    made, memory = 0, WeightsMemory()
    for name, tensor in tensors:
        kind = name.rsplit(".", 1)[-1]
        pair = compact(tensor, memory) if kind in MATRICES or kind in HEADS else None
        if pair is None:
            widens = tensor.dtype == torch.bfloat16 and dtype != torch.bfloat16 and kind != "scale"
            yield name, empty_apart(tuple(tensor.shape), dtype).copy_(tensor) if widens else tensor
            continue
        del tensor  # before the next one is read
        made += 1
        yield name, pair[0]
        yield f"{name}.scale", pair[1]
    logger.info("compact weights: %d matrices", made)
