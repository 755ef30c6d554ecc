"""What every native launcher needs: dtype codes of csrc/cpu/bf16.h and checks that decide whether a call fits."""

from __future__ import annotations

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The DType enum of the C++ side."""


def fits(*tensors: torch.Tensor) -> bool:
    """True if all tensors have one native dtype; the kernels do not mix types."""
    return tensors[0].dtype in DTYPES and all(t.dtype == tensors[0].dtype for t in tensors)


def are(dtype: torch.dtype, *tensors: torch.Tensor) -> bool:
    """True if all tensors are contiguous and of ``dtype``."""
    return all(t.dtype == dtype and t.is_contiguous() for t in tensors)


def has_rows(tensor: torch.Tensor) -> bool:
    """True if the rows of [..., rows, columns] are contiguous and lie one after the other, at one distance."""
    distance = tensor.stride(-2)
    for size, stride in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1])):
        if size > 1 and stride != distance:
            return False
        distance *= size
    return tensor.stride(-1) == 1 and tensor.stride(-2) >= tensor.shape[-1]


def pointer(tensor: torch.Tensor | None) -> int:
    """The address of the first element, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
