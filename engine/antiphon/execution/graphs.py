"""Capture once, replay often: CUDA graphs, and a tape that does the same on a CPU so that captures can be tested there.

What is captured reads and writes fixed tensors only. Values on the host at capture time are part of the capture for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import EngineError

WAITING = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal", "repeat_interleave"}
)
"""PyTorch operators whose result's size or value the host must wait for."""
WARM_UPS = 2
"""Eager runs before a capture: kernels compile and libraries choose their algorithms."""


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Do it again, on the current contents of its tensors."""


class Graphs(Protocol):
    """Captures; all graphs of one object share one memory pool and must not run at the same time."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """``work`` as a graph. It runs a few times before; afterwards its fixed tensors hold whatever those runs left."""

    def fork(self) -> Graphs:
        """Graphs that may run at the same time as these."""


class CudaGraphs:
    """CUDA graphs in one shared memory pool."""

    def fork(self) -> CudaGraphs:
        """Graphs with a pool of their own, which may run beside these."""
        return CudaGraphs(self.device)

    def __init__(self, device: torch.device):
        self.device = device
        self._pool: Any = None

    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Warm up and capture on a side stream, as PyTorch asks for."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(WARM_UPS):
                work()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=side):
                work()
        torch.cuda.current_stream(self.device).wait_stream(side)
        self._pool = graph.pool()
        return graph


def graphs_for(device: torch.device) -> Graphs | None:
    """What the engine uses on a device: CUDA graphs on CUDA, none elsewhere."""
    return CudaGraphs(device) if device.type == "cuda" and torch.cuda.is_available() else None


class TapeGraphs:
    """The same on a CPU: every operator is written down with its very tensors and executed again on replay."""

    def fork(self) -> TapeGraphs:
        """Tapes share nothing."""
        return self

    def capture(self, work: Callable[[], None]) -> Tape:
        """Warm up and record."""
        tape = Tape()
        with torch.no_grad():
            for _ in range(WARM_UPS):
                work()
            with tape:
                work()
        return tape


class Tape(TorchDispatchMode):
    """Operators in the order of their execution; results of a replay go into the tensors of the recording."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        refuse_waiting(func, args)
        out = func(*args, **kwargs)
        held = {t.untyped_storage().data_ptr() for t in _tensors((*args, *kwargs.values()))}
        fresh = [(i, t) for i, t in enumerate(_tensors(out)) if t.untyped_storage().data_ptr() not in held]
        if fresh or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, fresh))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Run everything again."""
        for func, args, kwargs, fresh in self.calls:
            results = _tensors(func(*args, **kwargs))
            for index, target in fresh:
                if target.numel():
                    target.copy_(results[index])


def refuse_waiting(func: Any, args: tuple) -> None:
    """EngineError for an operator that cannot run without the host waiting for its result."""
    name = func._schema.name.partition("::")[2]
    masked = name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1:2]))
    if name in WAITING or masked:
        raise EngineError(f"{name} inside a step makes the host wait for the device; steps must run without it")


class _NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        refuse_waiting(func, args)
        return func(*args, **(kwargs or {}))


@contextmanager
def forbid_sync(device: torch.device) -> Iterator[None]:
    """Inside, whatever makes the host wait for the device raises: RuntimeError from CUDA, EngineError elsewhere."""
    if device.type != "cuda":
        with _NoWaiting():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [t for v in values for t in _tensors(v)] if isinstance(values, (list, tuple)) else []
