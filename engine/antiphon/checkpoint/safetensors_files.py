"""Headers of safetensors files: one file, or shards named by ``model.safetensors.index.json``.

Format: 8 bytes length of the header (little endian), the header as json (name -> dtype, shape, data_offsets relative
to the end of the header), the data. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .stored import StoredTensor, listing, require_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
AGAIN = "the file is damaged or its download was cut short; fetch it again"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Headers of all tensors in ``folder``: of the index's shards if there is an index, else of the single file.

    Raises:
        CheckpointError: a file is missing or damaged, or the index and its shards disagree.
    """
    index = folder / INDEX
    if not index.is_file():
        return read_file(folder / SINGLE)
    weight_map = _read_index(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {index} names it; fetch this shard again")
        tensors.update((name, t) for name, t in read_file(path).items() if weight_map.get(name, shard) == shard)
    absent = [name for name, shard in weight_map.items() if name not in tensors]
    if absent:
        raise CheckpointError(f"{folder / weight_map[absent[0]]} lacks what {index} says it holds: {listing(absent)}")
    return tensors


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Headers of all tensors in one safetensors file, checked against the size of the file."""
    require_file(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{path} ({size} bytes) is not a complete safetensors file; {AGAIN}")
        header = _parse(path, file.read(length))
    start = 8 + length
    tensors = {name: _entry(path, name, entry, start) for name, entry in header.items() if name != "__metadata__"}
    end = max((t.offset + t.num_bytes for t in tensors.values()), default=start)
    if end > size:
        raise CheckpointError(f"{path} is truncated: its header needs {end} bytes, the file has {size}; {AGAIN}")
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    weight_map = _parse(path, path.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; {AGAIN}")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path}: shard {shard!r} of {name} is not a plain file name")
    return weight_map


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be parsed ({error}); {AGAIN}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a mapping; {AGAIN}")
    return values


def _entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
        begin, end = int(begin), int(end)
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # 1e999 is a number to JSON
        raise CheckpointError(f"{path}: the header entry of {name} is malformed ({entry!r}); {AGAIN}") from error
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype}; expected one of {', '.join(DTYPES)}")
    tensor = StoredTensor(path, name, start + begin, shape, DTYPES[dtype])
    if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * tensor.dtype.itemsize:
        raise CheckpointError(
            f"{path}: {name} spans bytes {begin}..{end}, which does not fit its shape {shape}; {AGAIN}"
        )
    return tensor
