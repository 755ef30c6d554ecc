"""Linear map with bfloat16 weights stored without loss in 12 bits each, in branch form.

    y = x @ w[branch].T + bias[branch],   w = widen(weight, codes), bit for bit the bfloat16 matrix that was made compact

Trained weights of a matrix lie within a few powers of two, so of the upper bytes of their bfloat16 (sign and 7 bits of the
exponent) sixteen make up nearly all. A weight is its lower byte and a code of 4 bits for its upper one; a weight whose upper
byte has no code is an escape, listed apart.

Shapes: x bfloat16 or float32 [T, in], in a multiple of 128; weight uint8 [B, out, in * 3 / 2]; codes int32 [N]; bias [B, out] or
None and result [T, out] in x's dtype: that of ``linear`` with the plain weights, for float32 rows those widened.

A row of ``weight`` is in / 128 groups of 192 bytes, each of 128 columns: 128 lower bytes, then 64 bytes of codes.

    lower bytes   64 for each half h of the group: four lanes j of 16 bytes, the first 8 of columns 64h + 8j + 0..7, the
                  others of columns 64h + 32 + 8j + 0..7
    codes         the low half of byte i is the code of the column whose lower byte is byte i of half 0, the high half that
                  of the column whose lower byte is byte i of half 1

Interleaving the bytes of two 512-bit vectors of lower and upper bytes, which goes lane by lane, gives columns 64h .. 64h + 31 and
64h + 32 .. 64h + 63 in order.

``codes`` holds, in words:

    [0, 4)                      the upper byte of every code, 16 bytes: the most frequent first, of two as frequent the smaller
    [4, 5 + B * out)            the word at which the escapes of each row begin, and last N, where they end
    [5 + B * out, N)            the escapes, row after row, columns ascending: column << 8 | upper byte; their code is 0
"""

from __future__ import annotations

import torch

from .linear import reference as dense
from .operator import Operator
from .weights_memory import WeightsMemory

GROUP = 128
GROUP_BYTES = 192
TABLE_WORDS = 4
"""Words of ``codes`` before the row starts."""
WEIGHTS_PER_ESCAPE = 64
"""A matrix with more escapes than one in so many weights stays plain: random bits, or something that was never trained."""


def compact(weight: torch.Tensor, memory: WeightsMemory | None = None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """weight [..., out, in] → its bytes uint8 [..., out, in * 3 / 2] and codes int32 [N]; None where it stays plain: another
    dtype than bfloat16, ``in`` no multiple of 128, too many escapes. ``memory``: where the native operators put the bytes,
    for all matrices that are read together."""
    if weight.dtype != torch.bfloat16 or weight.shape[-1] % GROUP or not weight.numel():
        return None
    if _is_native(weight):
        from .native.linear_compact import compact_native

        return compact_native(weight, memory or WeightsMemory())
    return reference_compact(weight)


def widen(weight: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The bfloat16 matrix [..., out, in] that was made compact, every bit of it."""
    if _is_native(weight):
        from .native.linear_compact import widen_native

        return widen_native(weight, codes)
    return reference_widen(weight, codes)


def num_inputs(weight: torch.Tensor) -> int:
    """Width of the rows that a compact weight takes."""
    return weight.shape[-1] // GROUP_BYTES * GROUP


def too_many(num_escapes: int, num_weights: int) -> bool:
    """Whether a matrix with so many escapes stays plain."""
    return num_escapes * WEIGHTS_PER_ESCAPE > num_weights


def reference_compact(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """:func:`compact` of a matrix whose dtype and width fit, with PyTorch."""
    inputs = weight.shape[-1]
    low, high = weight.contiguous().view(-1, inputs, 1).view(torch.uint8).unbind(-1)
    table = torch.bincount(high.flatten(), minlength=256).argsort(descending=True, stable=True)[:16].to(torch.uint8)
    code_of = torch.full((256,), 16, dtype=torch.uint8, device=weight.device)
    code_of[table.int()] = torch.arange(16, dtype=torch.uint8, device=weight.device)
    code = code_of[high.int()]
    escaped = code == 16
    row, column = escaped.nonzero(as_tuple=True)
    if too_many(len(row), weight.numel()):
        return None
    code = _interleaved(code.masked_fill(escaped, 0))
    groups = torch.cat((_interleaved(low).flatten(1), code[:, 0] | code[:, 1] << 4), 1)
    first = TABLE_WORDS + len(low) + 1
    starts = torch.cat((row.new_zeros(1), escaped.sum(1).cumsum(0))) + first
    escapes = column << 8 | high[row, column]
    codes = torch.cat((table.view(torch.int32), starts.int(), escapes.int()))
    return groups.view(*weight.shape[:-1], inputs // GROUP * GROUP_BYTES), codes


def reference_widen(weight: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """:func:`widen` with PyTorch."""
    groups = weight.reshape(-1, GROUP_BYTES)
    nibbles = groups[:, GROUP:]
    code = torch.stack((nibbles & 15, nibbles >> 4), 1)
    low, high = groups[:, :GROUP].unflatten(1, (2, 64)), codes[:TABLE_WORDS].view(torch.uint8)[code.int()]
    inputs = num_inputs(weight)
    parts = torch.stack((_in_order(low), _in_order(high)), -1).view(-1, inputs, 2)
    starts, escapes = codes[TABLE_WORDS:].tensor_split([len(parts) + 1])
    row = torch.repeat_interleave(starts.diff())
    parts[row, escapes >> 8, 1] = (escapes & 255).to(torch.uint8)
    return parts.view(torch.bfloat16).view(*weight.shape[:-1], inputs)


def _interleaved(columns: torch.Tensor) -> torch.Tensor:
    """Bytes [rows, in] in the order of their columns → [groups, 2, 64] in that of the format."""
    return columns.reshape(-1, 2, 2, 4, 8).transpose(2, 3).reshape(-1, 2, 64)


def _in_order(lanes: torch.Tensor) -> torch.Tensor:
    """Bytes [groups, 2, 64] in the format's order → [groups, 128] in that of their columns."""
    return lanes.unflatten(2, (4, 2, 8)).transpose(2, 3).reshape(-1, GROUP)


def _is_native(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and "native" in linear_compact.backends("cpu")


def reference(
    x: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor | None, split: int
) -> torch.Tensor:
    """A dense product with the widened weights, in x's dtype."""
    return dense(x, reference_widen(weight, codes).to(x.dtype), bias, split)


def fake(x, weight, codes, bias, split):
    return x.new_empty(x.shape[0], weight.shape[1])


linear_compact = Operator(
    "linear_compact",
    "(Tensor x, Tensor weight, Tensor codes, Tensor? bias, int split) -> Tensor",
    reference=reference,
    fake=fake,
)
