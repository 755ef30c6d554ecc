"""A CUDA device that is not there: tensors have shapes, dtypes and a device, and no storage.

PyTorch's ``FakeTensorMode`` does this, but a few Python methods (indexing, ``to``, ``copy_``, ``item``) first ask for the
device's guard, which a build without CUDA lacks. :class:`Unguarded` sends those through the operators underneath, which
do not ask. With a CUDA build it changes nothing that can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ..audio import mel

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, every tensor is fake and ``cuda`` exists; yields the device. Constants cached by device are forgotten."""
    caches = (mel._filters, mel._hann)
    for cache in caches:
        cache.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Unguarded(), torch.no_grad():
            yield CUDA
    finally:
        for cache in caches:
            cache.cache_clear()


class Unguarded(TorchFunctionMode):
    """Runs the methods of :data:`_METHODS` through ``torch.ops.aten``."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _METHODS.get(func, func)(*args, **(kwargs or {}))


def _take(x: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Everything of ``x[index]`` but the gather: a view, and the index tensors per dimension (None: all of it)."""
    parts = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(part is not None and part is not Ellipsis for part in parts)
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (x.dim() - consumed)
    tensors: list[torch.Tensor | None] = []
    for part in parts:
        dim = len(tensors)
        if part is None:
            x = aten.unsqueeze(x, dim)
        elif isinstance(part, slice):
            x = aten.slice(x, dim, part.start, part.stop, part.step or 1)
        elif isinstance(part, torch.Tensor):
            tensors.append(part)
            continue
        else:
            x = aten.select(x, dim, int(part))
            continue
        tensors.append(None)
    return x, tensors


def _getitem(x: torch.Tensor, index: Any) -> torch.Tensor:
    view, tensors = _take(x, index)
    return aten.index(view, tensors) if any(t is not None for t in tensors) else view


def _setitem(x: torch.Tensor, index: Any, value: Any) -> None:
    view, tensors = _take(x, index)
    if any(t is not None for t in tensors):
        value = value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)
        aten.index_put_(view, tensors, value)
    elif isinstance(value, torch.Tensor):
        aten.copy_(view, value)
    else:
        aten.fill_(view, value)


def _to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*_without_tensor(args), **kwargs)
    device, dtype = device or x.device, dtype or x.dtype
    if torch.device(device).type == x.device.type and dtype == x.dtype:
        return x
    return aten._to_copy(x, device=torch.device(device), dtype=dtype, non_blocking=non_blocking)


def _without_tensor(args: tuple) -> tuple:
    """``to(other)`` as ``to(device, dtype)``."""
    return (args[0].device, args[0].dtype, *args[1:]) if args and isinstance(args[0], torch.Tensor) else args


def _copy(x: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return aten.copy_(x, source, non_blocking)


def _contiguous(x: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    return x if x.is_contiguous(memory_format=memory_format) else aten.clone(x, memory_format=memory_format)


_METHODS: dict[Callable, Callable] = {
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.__setitem__: _setitem,
    torch.Tensor.to: _to,
    torch.Tensor.copy_: _copy,
    torch.Tensor.nonzero: aten.nonzero,
    torch.Tensor.item: aten._local_scalar_dense,
    torch.Tensor.__int__: aten._local_scalar_dense,
    torch.Tensor.__float__: aten._local_scalar_dense,
    torch.Tensor.__bool__: aten._local_scalar_dense,
    torch.Tensor.tolist: aten._local_scalar_dense,
}


def run_fake(func: Callable, args: tuple, kwargs: dict) -> Any:
    """Result of an operator on fake tensors; for a convolution by formula, whose own fake asks for a device guard."""
    if func is aten.convolution.default:
        return _convolution(*args, **kwargs)
    return func(*args, **kwargs)


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups) -> torch.Tensor:
    """Shape of a convolution's result, any number of spatial dimensions (documentation of torch.nn.Conv1d)."""
    sizes = []
    for d, (kernel, size) in enumerate(zip(weight.shape[2:], x.shape[2:], strict=True)):
        s, p, reach = stride[d], padding[d], dilation[d] * (kernel - 1)
        sizes.append(
            (size - 1) * s - 2 * p + reach + output_padding[d] + 1
            if transposed
            else (size + 2 * p - reach - 1) // s + 1
        )
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return torch.empty(x.shape[0], channels, *sizes, dtype=x.dtype, device=x.device)
