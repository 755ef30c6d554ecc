"""Fixed tensors that the host fills before a replay: one buffer, one asynchronous copy from pinned memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64


class StaticInputs:
    """Named tensors in one buffer on ``device``; zeros at first.

    Args:
        specs: shape and dtype by name.
    """

    def __init__(self, specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device):
        self._places: dict[str, tuple[slice, tuple[int, ...], torch.dtype]] = {}
        end = 0
        for name, (shape, dtype) in specs.items():
            size = math.prod(shape) * dtype.itemsize
            self._places[name] = (slice(end, end + size), shape, dtype)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._buffer = torch.zeros(end, dtype=torch.uint8, device=device)
        self._tensors = {name: self._view(self._buffer, name) for name in specs}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    @property
    def num_bytes(self) -> int:
        return self._buffer.numel()

    def load(self, arrays: Mapping[str, np.ndarray | Tensor]) -> None:
        """Fill all tensors; every name, shapes as declared. The host does not wait."""
        source = torch.empty_like(self._buffer, device="cpu", pin_memory=torch.cuda.is_available())
        for name in self._places:
            value = arrays[name]
            self._view(source, name).copy_(value if isinstance(value, Tensor) else torch.from_numpy(value))
        self._buffer.copy_(source, non_blocking=True)

    def _view(self, buffer: Tensor, name: str) -> Tensor:
        place, shape, dtype = self._places[name]
        return buffer[place].view(dtype).view(shape)
