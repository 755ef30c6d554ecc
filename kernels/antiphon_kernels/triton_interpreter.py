"""Corrections of Triton's interpreter (seen in 3.6 and 3.8), so that it computes what a GPU computes.

* float conversions to 16 bits and fewer cut the low bits off; hardware rounds to nearest even;
* a loop bound computed on the device fails with NumPy 2.4 (Triton 3.6 converts an array of one element to an int);
* ``tl.dot`` of bfloat16 multiplies the bit patterns as integers, and ints become bfloat16 by their bits alone.

:func:`install` puts the corrected functions in place; it does nothing in a process that compiles.
"""

from __future__ import annotations

import numpy as np
import torch

from . import triton_support

_FLOATS = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
}


def _as_torch(data: np.ndarray, name: str) -> torch.Tensor:
    """The interpreter's storage of a float type (unsigned ints for those that numpy lacks) as a tensor, flat."""
    return torch.from_numpy(np.frombuffer(data.tobytes(), dtype=np.uint8).copy()).view(_FLOATS[name])


def convert_float(data: np.ndarray, source, target, rounding) -> np.ndarray:
    """Replacement of ``_convert_float``: bits of ``data`` in type ``target``, rounded to nearest even."""
    bits = _as_torch(data, str(source)).to(_FLOATS[str(target)]).view(torch.uint8).numpy()
    return np.frombuffer(bits.tobytes(), dtype=f"uint{target.primitive_bitwidth}").reshape(data.shape)


def cast(builder, src, dst_type):
    """Replacement of ``InterpreterBuilder.cast_impl``: from and to bfloat16 by way of float32."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    source, target, data = str(src.dtype.scalar), str(dst_type.scalar), src.data
    if source == target:
        return TensorHandle(data, dst_type.scalar)
    if source == "bf16":
        data = _wide(src)
    if target == "bf16":
        bits = torch.from_numpy(np.ascontiguousarray(data.astype(np.float32))).bfloat16().view(torch.int16).numpy()
        return TensorHandle(bits.view(np.uint16).reshape(src.data.shape), dst_type.scalar)
    return TensorHandle(data.astype(_get_np_dtype(dst_type)), dst_type.scalar)


def _wide(handle) -> np.ndarray:
    """Values of a float operand in float32 (exact for every narrower type)."""
    return _as_torch(handle.data, str(handle.dtype.scalar)).float().numpy().reshape(handle.data.shape)


def create_dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """Replacement of ``InterpreterBuilder.create_dot``: float operands widened, ints summed in the accumulator's type."""
    from triton.runtime.interpreter import TensorHandle

    floats = a.dtype.scalar.is_floating()
    x, y = (_wide(a), _wide(b)) if floats else (a.data, b.data)
    return TensorHandle(np.matmul(x, y, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def _with_index(patch_tensor):
    """``_patch_lang_tensor`` whose tensors of one element are loop bounds."""

    def patched(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched


def install() -> None:
    """Correct the interpreter of this process; a second call changes nothing."""
    if triton_support.interpreted:
        from triton.runtime import interpreter

        if interpreter._convert_float is convert_float:
            return
        interpreter._patch_lang_tensor = _with_index(interpreter._patch_lang_tensor)

        interpreter._convert_float = convert_float
        interpreter.InterpreterBuilder.create_dot = create_dot
        interpreter.InterpreterBuilder.cast_impl = cast


def serve_cpu() -> None:
    """Let operators called on CPU tensors reach their Triton launchers: a rehearsal of the CUDA path by interpretation."""
    from dataclasses import replace

    from .operator import operators, set_backend

    for operator in operators().values():
        triton = operator._implementations.get("triton")
        if triton is not None:
            operator._implementations["triton"] = replace(triton, devices=("cpu", "cuda"))
    set_backend("triton")
