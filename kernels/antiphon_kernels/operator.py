"""One operator, many backends: registration with ``torch.library`` and the choice among implementations.

An operator file builds one :class:`Operator` from its schema, its PyTorch reference and its fake kernel, then
adds faster implementations with :meth:`Operator.backend`. The PyTorch dispatcher picks the device; on that device
the operator picks the first backend of :data:`ORDER` that is registered and supports the call. An explicit choice
(``ANTIPHON_BACKEND`` or :func:`set_backend`) of anything but ``auto`` still falls back to ``reference`` for
operators that have no such implementation at all, and raises for one that has it but refuses the call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import environment

BACKENDS = ("reference", "native", "triton", "cuda")
ORDER = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}

_library = torch.library.Library("antiphon", "DEF")
_operators: dict[str, Operator] = {}
_choice = environment.backend()
calls: Counter[tuple[str, str]] = Counter()
"""How often each (operator, backend) ran in this process, when :data:`counting` is on."""
counting = False


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot run this call."""


@dataclass(frozen=True)
class _Implementation:
    function: Callable
    devices: tuple[str, ...]
    supports: Callable[..., bool] | None


class Operator:
    """A named operator: callable, traceable, with countable backends.

    Args:
        name: operator name inside the ``antiphon`` namespace, equal to its file's stem.
        schema: ``torch.library`` schema without the name, e.g. ``"(Tensor x) -> Tensor"``; arguments that are
            written to are annotated, e.g. ``Tensor(a!) k_cache``.
        reference: plain PyTorch implementation, any device.
        fake: shape-and-dtype-only implementation for ``FakeTensorMode``.
    """

    def __init__(self, name: str, schema: str, *, reference: Callable, fake: Callable):
        self.name = name
        self.reference = reference
        self._implementations: dict[str, _Implementation] = {
            "reference": _Implementation(reference, ("cpu", "cuda"), None)
        }
        self._plans: dict[str, tuple[tuple[str, _Implementation], ...]] = {}
        _library.define(name + schema)
        _library.impl(name, lambda *args: self._run("cpu", args), "CPU")
        _library.impl(name, lambda *args: self._run("cuda", args), "CUDA")
        torch.library.register_fake(f"antiphon::{name}", fake, lib=_library)
        self._overload = getattr(torch.ops.antiphon, name).default
        _operators[name] = self

    def __call__(self, *args):
        return self._overload(*args)

    def backend(self, name: str, *, devices: tuple[str, ...], supports: Callable[..., bool] | None = None):
        """Decorator: register an implementation of this operator for ``devices``; ``supports(*args)`` may refuse a call."""
        if name not in BACKENDS:
            raise ValueError(f"backend {name!r}: expected one of {BACKENDS}")

        def register(function: Callable) -> Callable:
            self._implementations[name] = _Implementation(function, devices, supports)
            self._plans.clear()
            return function

        return register

    def backends(self, device: str) -> tuple[str, ...]:
        """Names of the implementations for ``device``, in the order in which they are tried."""
        return tuple(name for name, _ in self._plan(device))

    def implementation(self, name: str) -> Callable:
        """The implementation called ``name``; KeyError if there is none."""
        return self._implementations[name].function

    def supports(self, name: str, *args) -> bool:
        """Whether the implementation called ``name`` exists and takes this call."""
        implementation = self._implementations.get(name)
        return implementation is not None and (implementation.supports is None or implementation.supports(*args))

    def _plan(self, device: str) -> tuple[tuple[str, _Implementation], ...]:
        plan = self._plans.get(device)
        if plan is None:
            order = ORDER[device] if _choice == "auto" else (_choice,)
            plan = tuple(
                (name, self._implementations[name])
                for name in order
                if name in self._implementations and device in self._implementations[name].devices
            ) or (("reference", self._implementations["reference"]),)
            self._plans[device] = plan
        return plan

    def _run(self, device: str, args: tuple):
        for name, implementation in self._plan(device):
            if implementation.supports is None or implementation.supports(*args):
                if counting:
                    calls[self.name, name] += 1
                return implementation.function(*args)
        shapes = ", ".join(f"{tuple(a.shape)} {a.dtype}" for a in args if isinstance(a, torch.Tensor))
        raise BackendError(
            f"{self.name}: backend {_choice!r} does not support this call on {device} ({shapes}); "
            "use ANTIPHON_BACKEND=auto to fall back"
        )


def operators() -> dict[str, Operator]:
    """All registered operators by name."""
    return dict(_operators)


def set_backend(choice: str) -> None:
    """Choose the backend of every operator in this process: ``auto`` or one of :data:`BACKENDS`."""
    global _choice
    if choice != "auto" and choice not in BACKENDS:
        raise ValueError(f"backend {choice!r}: expected 'auto' or one of {BACKENDS}")
    _choice = choice
    for operator in _operators.values():
        operator._plans.clear()


@contextmanager
def use_backend(choice: str):
    """``set_backend`` for the duration of a ``with`` block."""
    before = _choice
    set_backend(choice)
    try:
        yield
    finally:
        set_backend(before)


@contextmanager
def count_calls():
    """Count which backend ran inside the block; yields the live :data:`calls` counter, emptied first."""
    global counting
    before, counting = counting, True
    calls.clear()
    try:
        yield calls
    finally:
        counting = before


set_backend(_choice)
