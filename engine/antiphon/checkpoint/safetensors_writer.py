"""Writing safetensors tensor by tensor, in one file or in shards with an index."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from antiphon_kernels.weights_memory import PAGE_BYTES

from .expected import Shapes
from .safetensors_files import DTYPES, INDEX, SINGLE

Pieces = Callable[[str], Iterator[torch.Tensor]]
Specs = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype by name, in the order of the file."""
ALIGNMENT = 64
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, shapes: Shapes, dtype: torch.dtype, pieces: Pieces) -> None:
    """Write one safetensors file; ``pieces(name)`` yields each tensor flat, in order, piece by piece."""
    with open(path, "wb") as file:
        file.write(_header({name: (shape, dtype) for name, shape in shapes.items()}))
        for name in shapes:
            file.writelines(_bytes(piece) for piece in pieces(name))


def write_tensors(path: Path, specs: Specs, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Write one safetensors file of mixed dtypes as ``tensors`` come, in the order of ``specs``; returns its SHA-256.

    Every tensor begins at a multiple of 64 bytes in the file, so in memory when mapped, if the sizes before it are such.
    """
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for block in _blocks(_content(specs, tensors)):
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def _blocks(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The same bytes, a large page at a time: the system caches a file in the pieces in which it was written."""
    block, filled = memoryview(bytearray(PAGE_BYTES)), 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            part = rest[: PAGE_BYTES - filled]
            block[filled : filled + len(part)] = part
            rest, filled = rest[len(part) :], filled + len(part)
            if filled == PAGE_BYTES:
                yield block
                filled = 0
    yield block[:filled]


def _content(specs: Specs, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[bytes | memoryview]:
    yield _header(specs)
    left = iter(specs.items())
    for name, tensor in tensors:
        expected = next(left, None)
        assert expected == (name, (tuple(tensor.shape), tensor.dtype)), f"{name} came, {expected} is next"
        yield _bytes(tensor.contiguous().flatten())
    assert next(left, None) is None, "tensors are missing"


def _bytes(flat: torch.Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def _header(specs: Specs) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in specs.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


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
