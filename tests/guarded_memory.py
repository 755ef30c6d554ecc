"""Tensors that end where readable memory ends: a kernel that reads or writes one element too far does not survive it.

AddressSanitizer sees neither masked instructions nor tile loads by itself; the processor sees everything.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import torch
from torch.overrides import TorchFunctionMode

PAGE = mmap.PAGESIZE
PROT_NONE = 0
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
"""Whether AddressSanitizer watches the heap; protected pages would hide tensors from it."""

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy between two protected pages; its last byte is the last one before the second."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return tensor
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)  # lives as long as the tensor
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for address in (start, start + (pages + 1) * PAGE):
        if _mprotect(address, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = (pages + 1) * PAGE - size
    own = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
    return own.copy_(tensor)


class GuardedMemory(TorchFunctionMode):
    """Inside it every PyTorch function that returns a contiguous CPU tensor with memory of its own returns a guarded one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if not isinstance(out, torch.Tensor) or not out.is_contiguous() or out.is_cuda or out.requires_grad:
            return out
        taken = {t.untyped_storage().data_ptr() for t in _tensors((args, tuple(kwargs.values())))}
        return out if out.untyped_storage().data_ptr() in taken else guarded(out)


def _tensors(values):
    """The tensors among ``values``, however deep in lists and tuples."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
