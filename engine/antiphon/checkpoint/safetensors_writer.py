"""Writing safetensors tensor by tensor, in one file or in shards with an index."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .expected import Shapes
from .safetensors_files import DTYPES, INDEX, SINGLE

Pieces = Callable[[str], Iterator[torch.Tensor]]
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, shapes: Shapes, dtype: torch.dtype, pieces: Pieces) -> None:
    """Write one safetensors file; ``pieces(name)`` yields each tensor flat, in order, piece by piece."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in shapes:
            file.writelines(piece.view(torch.uint8).numpy().data for piece in pieces(name))


def write_sharded(folder: Path, shapes: Shapes, dtype: torch.dtype, pieces: Pieces, shard_bytes: int) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` (at least one tensor each) and their index."""
    shards: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * dtype.itemsize
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes
    if len(shards) == 1:
        return write_safetensors(folder / SINGLE, shapes, dtype, pieces)
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard, dtype, pieces)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(map(math.prod, shapes.values())) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
