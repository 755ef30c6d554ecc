"""Triton, where it is installed: the decorator, the one function that launches, and the record of launches.

Every Triton kernel of this package is declared with :func:`jit` and started with :func:`launch`, so that three things work
without a GPU. Machines without Triton import the package (kernels are then inert names and :data:`available` is false).
``TRITON_INTERPRET=1``, set before the first import, runs the launchers on CPU tensors. Inside :func:`recording` nothing
runs: each launch is described instead, on tensors of any device (meta and fake ones too), completely enough to compile
that specialisation for a GPU that is not there.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

available = triton is not None
interpreted = available and os.environ.get("TRITON_INTERPRET") == "1"
ALIGNMENT = 16
"""Bytes to which an address, and the number to whose multiples an int, is specialised, as Triton's own launcher does."""

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what to compile (all fields but ``grid``) and how many programs ran it.

    ``kernel`` is ``module:function``; ``signature`` pairs every parameter with its Triton type or ``constexpr``; ``constants``
    the values of the latter; ``aligned`` names the parameters that are multiples of 16.
    """

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    grid: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.kernel.partition(":")[2]


_record: list[Launch] | None = None
_recorded_capability = 80


def jit(fn: Callable | None = None, *, varying: tuple[str, ...] = ()) -> Callable:
    """``triton.jit``; the ints in ``varying`` change from call to call and are not specialised on."""
    if fn is None:
        return lambda f: jit(f, varying=varying)
    fn.varying = frozenset(varying)
    return triton.jit(fn, do_not_specialize=list(varying)) if available else fn


def supported_dtype(*tensors: torch.Tensor | None) -> bool:
    """Triton is there and every tensor is float32, bfloat16 or float16: the condition of most kernels."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    return available and all(t is None or t.dtype in types for t in tensors)


def launch(kernel: Callable, grid: tuple[int, ...], *args: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any) -> None:
    """Start ``kernel`` over ``grid`` on the device of the first tensor; an empty grid starts nothing.

    ``args`` are the leading parameters in order, ``constants`` its ``tl.constexpr`` parameters.
    """
    if 0 in grid:
        return
    if _record is not None:
        _record.append(describe(kernel, grid, args, constants, num_warps, num_stages))
        return
    if not available:
        raise RuntimeError("Triton is not installed: pip install 'triton>=3.6', or choose another backend")
    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    with torch.cuda.device(device.index if device.type == "cuda" else -1):
        kernel[grid](*args, num_warps=num_warps, num_stages=num_stages, **constants)


def describe(
    kernel: Callable, grid: tuple[int, ...], args: tuple, constants: dict[str, Any], num_warps: int, num_stages: int
) -> Launch:
    """What Triton would compile for this call: types, constants (also None and the int 1), multiples of 16."""
    fn = getattr(kernel, "fn", kernel)
    names = list(inspect.signature(fn).parameters)
    values = dict(zip(names, args)) | constants
    if set(values) != set(names) or len(args) + len(constants) != len(names):
        raise TypeError(f"{fn.__name__}: expected the parameters {names}, got {list(values)}")
    signature, fixed, aligned = {}, {}, []
    for name in names:
        value = values[name]
        kind = "constexpr" if name in constants else _type_of(value, name in fn.varying)
        signature[name] = kind
        if kind == "constexpr":
            fixed[name] = value
        elif name not in fn.varying and _is_aligned(value):
            aligned.append(name)
    return Launch(
        f"{fn.__module__}:{fn.__name__}", tuple(signature.items()), tuple(fixed.items()), tuple(aligned),
        num_warps, num_stages, tuple(int(n) for n in grid),
    )  # fmt: skip


def _type_of(value: Any, varying: bool) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if value is None or isinstance(value, int) and value == 1 and not varying:
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_aligned(value: Any) -> bool:
    """Storage of PyTorch's allocators starts at a multiple of 256 bytes, so the offset decides for tensors."""
    if isinstance(value, torch.Tensor):
        return value.storage_offset() * value.element_size() % ALIGNMENT == 0
    return isinstance(value, int) and value % ALIGNMENT == 0


@contextmanager
def recording(capability: int = 80) -> Iterator[list[Launch]]:
    """Describe launches, as for a GPU of that compute capability, instead of running them; yields the list that grows."""
    global _record, _recorded_capability
    before, _record, _recorded_capability = (_record, _recorded_capability), [], capability
    try:
        yield _record
    finally:
        _record, _recorded_capability = before


def capability(x: torch.Tensor) -> int:
    """Compute capability for whose limits a launcher chooses its tiles: 80, 90, 120 …; 80 in the interpreter."""
    if _record is None and x.is_cuda:
        major, minor = torch.cuda.get_device_capability(x.device)
        return 10 * major + minor
    return _recorded_capability


def has_wgmma(x: torch.Tensor) -> bool:
    """sm_90 and sm_100: tensor cores that read shared memory, and twice the shared memory of the others."""
    return capability(x) // 10 in (9, 10)


def is_recording() -> bool:
    """True inside :func:`recording`: launchers must not keep tensors for later calls then."""
    return _record is not None


def row_contiguous(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself if its last dimension is contiguous (rows may be strided), else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def check(condition: bool, message: str) -> None:
    """Raise ValueError: a launcher got arguments that its kernel does not take."""
    if not condition:
        raise ValueError(message)
