"""Host arrays to the device: all of a step's in one pinned buffer and one asynchronous copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on ``device``; on a CPU they share the arrays' memory.

    Elsewhere they are views of one new buffer. The host does not wait: PyTorch keeps the pinned source until it was read.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    places, size = [], 0
    for array in arrays:
        places.append(size)
        size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    packed = np.empty(size, np.uint8)
    for array, place in zip(arrays, places, strict=True):
        packed[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    source = torch.from_numpy(packed)
    if torch.cuda.is_available():
        source = source.pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=device)
    target.copy_(source, non_blocking=True)
    return [
        target[place : place + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, place in zip(arrays, places, strict=True)
    ]
