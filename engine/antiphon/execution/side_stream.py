"""A queue of its own for work that may overlap the language model, and results that travel back without a wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


class SideStream:
    """Work inside ``with stream.work():`` goes to a CUDA stream of its own; on a CPU it simply runs.

    It begins after what was queued before. Tensors that it makes stay with it, since nothing else waits for them, until
    :class:`Arrivals` behind them are ready and :func:`hand_over` was told.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and torch.cuda.is_available() else None

    @contextmanager
    def work(self) -> Iterator[None]:
        """Queue what happens inside."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield


def hand_over(tensors: Sequence[Tensor]) -> None:
    """Finished tensors of a side stream go to the current one: their memory is not used again before it is done with them."""
    for t in tensors:
        if t.is_cuda and torch.cuda.is_available():
            t.record_stream(torch.cuda.current_stream(t.device))


class Arrivals:
    """Tensors on their way to the host: pinned copies behind the work of the current stream.

    ``staying``: tensors that are not copied, but that must be complete as well.
    """

    def __init__(self, tensors: Sequence[Tensor], staying: Sequence[Tensor] = ()):
        self._event = None
        self._tensors = list(tensors)
        if any(t.is_cuda for t in (*tensors, *staying)) and torch.cuda.is_available():
            self._tensors = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for target, source in zip(self._tensors, tensors, strict=True):
                target.copy_(source, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def ready(self) -> bool:
        """Whether :meth:`arrays` would not wait."""
        return self._event is None or self._event.query()

    def arrays(self) -> list[np.ndarray]:
        """The values; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return [t.numpy() for t in self._tensors]
