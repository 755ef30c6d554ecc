"""Host arrays to the device: all of a step's in one pinned buffer and one asynchronous copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64


def upload(arrays: Sequence[np.ndarray | Tensor], device: torch.device) -> list[Tensor]:
    """Arrays or CPU tensors as tensors on ``device``; on a CPU they share the given memory.

    Elsewhere they are views of one new buffer. The host does not wait: PyTorch keeps the pinned source until it was read.
    """
    tensors = [array if isinstance(array, Tensor) else torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    sizes = [-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in tensors]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    source = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    target = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    places = [(slice(start, start + t.nbytes), t) for start, t in zip(starts, tensors, strict=True)]
    for place, t in places:
        source[place].view(t.dtype).view(t.shape).copy_(t)
    target.copy_(source, non_blocking=True)
    return [target[place].view(t.dtype).view(t.shape) for place, t in places]
