"""Plain bfloat16 matrices made compact as they are loaded: the same weights, bit for bit, in 12 bits each.

A step of decoding on a CPU takes as long as its weights take to be read (``antiphon_kernels.linear_compact``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch

from antiphon_kernels import native
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.weights_memory import WeightsMemory

from ..config import ModelConfig
from ..errors import ConfigError
from .packing import Named
from .quantized import HEADS, MATRICES

logger = logging.getLogger(__name__)


def resolve_compact(chosen: bool | None, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model's matrices are made compact; None: where they then decode faster, except those of a converted
    checkpoint, which stay pages of its file.

    Raises:
        ConfigError: asked for where it cannot be.
    """
    problem = obstacle(dtype, device) or _obstacle_in_files(config)
    if chosen is None:
        return problem is None and config.quantization is None and native.prefers_compact()
    if chosen and problem is not None:
        raise ConfigError(f"{problem}, or do not ask for them")
    return chosen


def obstacle(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why no matrix can be compact, and what to change, or None."""
    if device.type != "cpu":
        return f"compact weights need the native operators of a CPU, not {str(device)!r}; use device='cpu'"
    if dtype != torch.bfloat16:
        return f"compact weights are bfloat16, and the model is to work in {dtype}; use dtype='bfloat16'"
    if not native.available:
        return f"compact weights need the native operators of a CPU; {native.status()}"
    return None


def _obstacle_in_files(config: ModelConfig) -> str | None:
    """The same of a language model's matrices."""
    if config.quantization is not None and config.quantization.heads != "bfloat16":
        kinds = f"{config.quantization.layers} layers and {config.quantization.heads} heads"
        return f"compact weights are bfloat16, and {config.path} has {kinds}; load the official checkpoint"
    return None


def compact_matrices(tensors: Iterable[Named]) -> Iterator[Named]:
    """Packed tensors by name; of bfloat16 matrices their bytes and, behind them, their codes as ``X.scale``.

    One plain matrix is held at a time. What does not fit the format comes as it is.
    """
    made, memory = 0, WeightsMemory()
    for name, tensor in tensors:
        kind = name.rsplit(".", 1)[-1]
        pair = compact(tensor, memory) if kind in MATRICES or kind in HEADS else None
        if pair is None:
            yield name, tensor
            continue
        del tensor  # before the next one is read
        made += 1
        yield name, pair[0]
        yield f"{name}.scale", pair[1]
    logger.info("compact weights: %d matrices", made)
