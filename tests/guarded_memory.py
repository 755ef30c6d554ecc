"""Tensors that end where readable memory ends: a kernel that reads or writes one element too far does not survive it.

AddressSanitizer sees neither masked instructions nor tile loads by itself; the processor sees everything.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections import defaultdict

import torch
from torch.overrides import TorchFunctionMode

PAGE = mmap.PAGESIZE
PROT_NONE = 0
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
"""Whether AddressSanitizer watches the heap; protected pages would hide tensors from it."""

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mapped: list[mmap.mmap] = []
_free: dict[int, list[int]] = defaultdict(list)
"""By number of pages: addresses of regions that no tensor uses. They are never unmapped, for mapping costs more than tests."""


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy between two protected pages; its last byte is the last one before the second."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return tensor
    pages = -(-size // PAGE)
    address = _free[pages].pop() if _free[pages] else _region(pages)
    memory = (ctypes.c_char * size).from_address(address + pages * PAGE - size)
    weakref.finalize(memory, _free[pages].append, address).atexit = False
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def _region(pages: int) -> int:
    """The address of as many fresh pages with a protected one on either side."""
    _mapped.append(mmap.mmap(-1, (pages + 2) * PAGE))
    start = ctypes.addressof(ctypes.c_char.from_buffer(_mapped[-1]))
    for address in (start, start + (pages + 1) * PAGE):
        if _mprotect(address, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return start + PAGE


class GuardedMemory(TorchFunctionMode):
    """Inside it PyTorch functions that return a contiguous CPU tensor with memory of its own return a guarded one.

    Whole numbers that were computed from others stay where they are: random generators are made of thousands of those.
    """

    MAKERS = frozenset(
        (torch.arange, torch.cat, torch.empty, torch.full, torch.randint, torch.stack, torch.tensor, torch.zeros)
        + (torch.Tensor.contiguous, torch.Tensor.long, torch.Tensor.new_empty, torch.Tensor.to, torch.Tensor.__or__)
    )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not isinstance(out, torch.Tensor) or not (out.is_floating_point() or function in self.MAKERS):
            return out
        if not out.is_contiguous() or out.is_cuda or out.requires_grad:
            return out
        taken = {t.untyped_storage().data_ptr() for t in _tensors((args, tuple((kwargs or {}).values())))}
        return out if out.untyped_storage().data_ptr() in taken else guarded(out)


def _tensors(values):
    """The tensors among ``values``, however deep in lists and tuples."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
