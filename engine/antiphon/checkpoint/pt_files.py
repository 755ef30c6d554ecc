"""Headers of torch ``.pt`` files: the pickle is read by the restricted unpickler, the data stays on disk.

``torch.load(map_location="meta", weights_only=True)`` yields meta tensors whose storages know their place in the
zip file (PyTorch serialization notes, "Layout Control"), so a ``.pt`` is read tensor by tensor like any other file.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .stored import StoredTensor, require_file

AGAIN = "the file is damaged or its download was cut short; fetch it again"


def read_pt(path: Path, entry: str) -> dict[str, StoredTensor]:
    """Headers of the tensors in the mapping ``entry`` of the torch zip file ``path``; other entries are ignored.

    Raises:
        CheckpointError: the file is missing, damaged, no torch zip file, or holds anything but weights.
    """
    require_file(path)
    _check_zip(path)
    content = _unpickle(path)
    tensors = content.get(entry) if isinstance(content, dict) else None
    if not isinstance(tensors, dict):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} must hold a mapping {entry!r} of tensors, found {found}")
    return {str(name): _stored(path, str(name), value) for name, value in tensors.items()}


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            cut = file.read(2) == b"PK"
        reason = AGAIN if cut else "expected what torch.save writes; a pickle of another kind is never loaded"
        raise CheckpointError(f"{path} is not a complete torch zip file; {reason}")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {AGAIN}") from error
    if packed:
        raise CheckpointError(
            f"{path}: {packed[0]} is compressed; expected an uncompressed file as torch.save writes it"
        )


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds objects other than weights and was not loaded (it could run code): "
            f"{_first_line(error)}. Get the file from its official source"
        ) from error
    except Exception as error:  # a damaged pickle makes torch raise whatever comes, assertions too
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); {AGAIN}") from error


def _stored(path: Path, name: str, value: Any) -> StoredTensor:
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{path}: {name} is a {type(value).__name__}, expected a tensor")
    if not value.is_contiguous():
        raise CheckpointError(f"{path}: {name} is not contiguous; save it again with .contiguous()")
    start = value.untyped_storage()._checkpoint_offset
    if start is None:
        raise CheckpointError(f"{path}: {name} has no data in the file")
    stored = StoredTensor(
        path, name, start + value.storage_offset() * value.element_size(), tuple(value.shape), value.dtype
    )
    if stored.offset + stored.num_bytes > path.stat().st_size:
        raise CheckpointError(f"{path} is truncated inside {name}; {AGAIN}")
    return stored


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    wanted = [line for line in text.splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return (wanted or text.splitlines() or [type(error).__name__])[0].strip()
