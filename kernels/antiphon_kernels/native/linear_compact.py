"""Native linear with compact bfloat16 weights, read as they are stored: bit for bit the results of ``native.linear`` with the plain
ones, for any number of rows (with AMX many float32 rows have the results of its vectors, where plain weights are PyTorch's). On the
scalar instruction set PyTorch serves more than :data:`MAX_ROWS` of a branch, with weights widened on the way."""

from __future__ import annotations

import torch

from .. import _native
from ..linear_compact import GROUP, GROUP_BYTES, TABLE_WORDS, linear_compact, num_inputs, too_many
from ..weights_memory import WeightsMemory
from .arguments import DTYPES, are, fits, pointer
from .linear import MAX_ROWS, native_linear, prepare

FAST = {
    torch.bfloat16: ("avx512bf16", "amx"),
    torch.float32: ("avx2", "avx512", "avx512vnni", "avx512bf16"),
}
"""Instruction sets on which fewer bytes are a shorter decode step (docs/log.md). float32 with AMX was not measured."""
FAST_WIDE = {torch.bfloat16: ("amx",)}
"""Those on which bfloat16 networks of many rows gain as well: vectors take 1.01 to 1.17 times as long as with plain weights."""


def supports(x, weight, codes, bias, split) -> bool:
    floats = fits(x) and (bias is None or fits(x, bias))
    return floats and are(torch.uint8, weight) and are(torch.int32, codes) and weight.shape[2] % GROUP_BYTES == 0


def prefers(dtype: torch.dtype, many_rows: bool) -> bool:
    """True where decoding in ``dtype``, or a network of ``many_rows``, is faster with compact weights than with plain ones, and runs
    natively."""
    isas = (FAST_WIDE if many_rows else FAST).get(dtype, ())
    return linear_compact.backends("cpu")[0] == "native" and _native.isa() in isas


def compact_native(weight: torch.Tensor, memory: WeightsMemory) -> tuple[torch.Tensor, torch.Tensor] | None:
    """As ``linear_compact.reference_compact``, byte by byte; the bytes lie in ``memory``."""
    weight, inputs = weight.contiguous(), weight.shape[-1]
    rows = weight.numel() // inputs
    head = torch.empty(TABLE_WORDS + rows + 1, dtype=torch.int32)
    escapes = _native.compact_count(weight.data_ptr(), rows, inputs, head.data_ptr())
    if too_many(escapes, weight.numel()):
        return None
    codes = torch.cat((head, head.new_empty(escapes)))
    packed = memory.empty((*weight.shape[:-1], inputs // GROUP * GROUP_BYTES), torch.uint8)
    _native.compact_pack(weight.data_ptr(), rows, inputs, codes.data_ptr(), packed.data_ptr())
    return packed, codes


def widen_native(weight: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """As ``linear_compact.reference_widen``."""
    weight, inputs = weight.contiguous(), num_inputs(weight)
    out = torch.empty(*weight.shape[:-1], inputs, dtype=torch.bfloat16)
    _native.compact_widen(weight.data_ptr(), codes.data_ptr(), out.data_ptr(), out.numel() // inputs, inputs)
    return out


@linear_compact.backend("native", devices=("cpu",), supports=supports)
def native_linear_compact(
    x: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """x [T, in], weight uint8 [B, out, in * 3 / 2], codes [N], bias [B, out] → [T, out]."""
    wide = max(split, x.shape[0] - split) > MAX_ROWS
    if wide and not runs_wide():
        return native_linear(x, widen_native(weight, codes).to(x.dtype), bias, split)
    return launch(x, weight, codes, bias, split, wide)


def runs_wide() -> bool:
    """Whether a native kernel serves more than :data:`MAX_ROWS` of a branch."""
    return _native.isa() != "scalar"


def launch(
    x: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor | None, split: int, wide: bool
) -> torch.Tensor:
    """By the kernel for any number of rows if ``wide``, else by the one for at most :data:`MAX_ROWS` of a branch."""
    x, bias, out = prepare(x, weight, bias, split)
    rows, inputs = x.shape
    if not rows:
        return out
    operands = (DTYPES[x.dtype], x.data_ptr(), x.stride(0), weight.data_ptr(), codes.data_ptr(), pointer(bias), out.data_ptr())
    sizes = (rows, split, out.shape[1], inputs)
    if wide:
        workspace = torch.empty(_native.linear_wide_workspace(rows, split, inputs), dtype=x.dtype)
        _native.linear_compact_wide(*operands, workspace.data_ptr(), *sizes)
    else:
        _native.linear_compact(*operands, *sizes)
    return out
