"""Watches a run on a fake CUDA device: every operator with its shapes, cost and launches; no waiting, no mixed devices."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from antiphon_kernels import Operator, operators
from antiphon_kernels.triton_support import Launch, recording

from ..errors import EngineError
from .fake_device import Unguarded, run_fake
from .op_costs import Cost, Lengths, aten_cost, is_free, operator_cost, tensors

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "equal",
    "repeat_interleave",
}
"""PyTorch operators whose result's size or value the host must wait for."""


class RehearsalError(EngineError):
    """The engine would wait for the device inside a step, or mixes devices."""


@dataclass(frozen=True)
class Call:
    """One operator call. ``backend``: which implementation runs there; PyTorch's own operators say ``torch``."""

    name: str
    backend: str
    shapes: tuple[str, ...]
    cost: Cost
    launches: int


@dataclass
class Part:
    """Everything that ran under one name. ``peak``: bytes of results that were alive at once."""

    name: str
    calls: list[Call] = field(default_factory=list)
    uploads: int = 0
    upload_bytes: int = 0
    peak: int = 0

    @property
    def launches(self) -> int:
        return sum(call.launches for call in self.calls)

    @property
    def num_bytes(self) -> int:
        return sum(call.cost.num_bytes for call in self.calls)

    @property
    def flops(self) -> int:
        return sum(call.cost.flops for call in self.calls)


class Recorder(TorchDispatchMode):
    """Use inside ``fake_cuda()``; name what runs with :meth:`part`. ``kernels``: every Triton specialisation met.

    ``fallbacks``: operators of ours that run their PyTorch reference on the GPU.
    """

    def __init__(self, capability: int):
        super().__init__()
        self.capability = capability
        self.parts: dict[str, Part] = {}
        self.kernels: dict[Launch, None] = {}
        self.fallbacks: set[str] = set()
        self.lengths = Lengths()
        self._part: Part | None = None
        self._operator: str | None = None
        self._alive = 0

    @contextmanager
    def part(self, name: str, lengths: Lengths | None = None) -> Iterator[Part]:
        """Calls inside belong to the part ``name``; ``lengths`` for the cost of its attention."""
        self._part = self.parts.setdefault(name, Part(name))
        self.lengths = lengths or Lengths()
        self._alive = 0
        try:
            with self:
                yield self._part
        finally:
            self._part = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if self._operator is not None and namespace == "aten":
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        given = tensors([args, list(kwargs.values())])
        places = {t.device.type for t in given if t.dim()}
        if namespace == "antiphon":
            return self._run_operator(name, func, args, places)
        if name in WAITING and any(t.is_cuda for t in given) or name == "index" and _has_mask(args):
            raise RehearsalError(f"{self._where(name)} makes the host wait for the device")
        out = run_fake(func, args, kwargs)
        self._follow(out, args)
        if name in ("_to_copy", "copy_") and self._is_transfer(name, args, kwargs, out):
            return out
        if not is_free(func) and any(t.is_cuda for t in tensors(out if name[-1] != "_" else args)):
            self._add(name, "torch", args, aten_cost(name, (*args, *_extra(name, kwargs)), out), 1)
        return out

    def _run_operator(self, name: str, func: Any, args: tuple, places: set[str]) -> Any:
        """An operator of ours as the dispatcher would run it on a GPU.

        A Triton launcher describes its launches; a reference runs, so that PyTorch's operators in it are seen.
        """
        if places - {"cuda"}:
            raise RehearsalError(f"{self._where(name)} got tensors on {sorted(places)}; expected all on cuda")
        chosen = operators()[name]
        backend = next((b for b, i in chosen._plan("cuda") if i.supports is None or i.supports(*args)), "reference")
        if backend == "reference":
            return self._run_reference(chosen, args)
        if backend != "triton":
            out = func(*args)
            self._follow(out, args)
            self._add(name, backend, args, operator_cost(name, args, out, self.lengths), 1)
            return out
        before, self._operator = self._operator, name
        with recording(self.capability) as launches, Unguarded(), self:
            out = chosen.implementation("triton")(*args)
        self._operator = before
        self.kernels.update(dict.fromkeys(launches))
        self._add(name, backend, args, operator_cost(name, args, out, self.lengths), len(launches))
        return out

    def _run_reference(self, chosen: Operator, args: tuple) -> Any:
        self.fallbacks.add(chosen.name)
        before, self._operator = self._operator, chosen.name
        try:
            with Unguarded(), self:
                return chosen.reference(*args)
        finally:
            self._operator = before

    def _is_transfer(self, name: str, args: tuple, kwargs: dict, out: Tensor) -> bool:
        """Note copies between host and device; the ones that the host waits for are errors."""
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
        if source.device.type == target.device.type:
            return False
        waits = not (kwargs.get("non_blocking") or len(args) > 2 and args[2])
        if waits or target.device.type == "cpu":
            raise RehearsalError(
                f"{self._where(name)} from {source.device.type} to {target.device.type} makes the host wait "
                f"({tuple(source.shape)} {source.dtype})"
            )
        if self._part:
            self._part.uploads += 1
            self._part.upload_bytes += target.numel() * target.element_size()
        return True

    def _add(self, name: str, backend: str, args: tuple, cost: Cost, launches: int) -> None:
        if self._part is None or self._operator and name in ("zeros", "zero_", "full", "fill_"):
            return  # a launcher's own counters, allocated once
        label = f"{self._operator}/{name}" if self._operator else name
        shapes = tuple(_describe(t) for t in tensors(args))
        self._part.calls.append(Call(label, backend, shapes, cost, launches))

    def _follow(self, out: Any, args: tuple) -> None:
        """Keep count of the memory that results hold; views of arguments hold none."""
        if self._part is None:
            return
        given = {t.untyped_storage()._cdata for t in tensors(args)}
        for t in tensors(out):
            storage = t.untyped_storage()
            if not t.is_cuda or storage._cdata in given or storage._cdata in _FOLLOWED:
                continue
            _FOLLOWED.add(storage._cdata)
            self._alive += storage.nbytes()
            self._part.peak = max(self._part.peak, self._alive)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        _FOLLOWED.discard(key)
        self._alive -= num_bytes

    def _where(self, name: str) -> str:
        part = f" in {self._part.name!r}" if self._part else ""
        return f"{self._operator or name}{part}:" if self._operator is None else f"{self._operator}/{name}{part}:"


_FOLLOWED: set[int] = set()


def _extra(name: str, kwargs: dict) -> tuple:
    return tuple(v for v in kwargs.values() if isinstance(v, Tensor))


def _has_mask(args: tuple) -> bool:
    return any(t.dtype == torch.bool for t in tensors(args[1:]))


def _describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
