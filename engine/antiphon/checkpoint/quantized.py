"""The converted checkpoint: the language model's packed tensors, quantised, as they lie in memory.

``model.safetensors`` holds the packed names of :func:`antiphon.checkpoint.load_llm`, a quantised matrix ``X`` as two tensors,
``X`` and ``X.scale``, in the formats of ``antiphon_kernels.linear_int8`` and ``linear_int4``. The inner width of the MLP is
filled up with zeros to a multiple of 128, which changes nothing: silu(0) * 0 meets columns of zeros. Everything else is
bfloat16: norms, biases, adaptor and the embedding, of which a step reads a few rows only.

A tensor that needs no change of dtype or device stays in its mapping of the file: no second copy is made. Only where the file's
pages are small and the system has large ones for memory are the matrices read into such, in place of being mapped.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from antiphon_kernels.weights_memory import WeightsMemory, has_large_pages

from ..config import LlmConfig, ModelConfig, QuantizationConfig
from ..environment import copy_small_pages, verify_checksums
from ..errors import CheckpointError, ConfigError
from . import expected
from .mapped_file import MappedFile, map_file
from .packing import Named, Packer, pack_llm
from .safetensors_files import SINGLE, read_file
from .safetensors_writer import ALIGNMENT, Specs
from .stored import StoredTensor, listing

logger = logging.getLogger(__name__)

GROUP = 128
CHECKED_BYTES = 64 << 20
MATRICES = ("qkv_weight", "o_weight", "gate_up", "down")
HEADS = ("lm_head", "audio_head")
AGAIN = "convert the official checkpoint again with `antiphon quantize`"


def scheme_of(name: str, quantization: QuantizationConfig) -> str | None:
    """``int8`` or ``int4`` for a packed tensor that is stored quantised, None for the others."""
    kind = name.rsplit(".", 1)[-1]
    chosen = quantization.layers if kind in MATRICES else quantization.heads if kind in HEADS else "bfloat16"
    return None if chosen == "bfloat16" else chosen


def padded_width(width: int) -> int:
    """``width`` rounded up to whole groups."""
    return -(-width // GROUP) * GROUP


def pad_inner(name: str, weight: torch.Tensor) -> torch.Tensor:
    """``gate_up`` [B, 2I, H] and ``down`` [B, H, I] with I filled up to a multiple of 128; others as they are."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "gate_up" and (missing := padded_width(weight.shape[1] // 2) - weight.shape[1] // 2):
        halves = weight.unflatten(1, (2, -1))
        return torch.cat((halves, halves.new_zeros(*halves.shape[:2], missing, halves.shape[3])), 2).flatten(1, 2)
    if kind == "down" and (missing := padded_width(weight.shape[2]) - weight.shape[2]):
        return torch.cat((weight, weight.new_zeros(*weight.shape[:2], missing)), 2)
    return weight


def packed_specs(config: LlmConfig, quantization: QuantizationConfig) -> Specs:
    """Names, shapes and dtypes of a converted file, in its order.

    Raises:
        ConfigError: int4 groups do not fit the model's width.
    """
    if quantization.layers == "int4" and config.hidden_size % GROUP:
        raise ConfigError(f"int4 needs a hidden size in multiples of {GROUP}, not {config.hidden_size}; use int8")
    packer = Packer(expected.llm_keys(config), _never, torch.bfloat16, torch.device("meta"))
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for name, weight in pack_llm(packer, config):
        scheme = scheme_of(name, quantization)
        if scheme is None:
            specs[name] = (tuple(weight.shape), weight.dtype)
            continue
        *lead, outputs, inputs = pad_inner(name, weight).shape
        if scheme == "int8":
            specs[name] = ((*lead, outputs, inputs), torch.int8)
            specs[f"{name}.scale"] = ((*lead, outputs), torch.float32)
        else:
            specs[name] = ((*lead, outputs, inputs // 2), torch.uint8)
            specs[f"{name}.scale"] = ((*lead, inputs // GROUP, outputs), torch.bfloat16)
    return dict(sorted(specs.items(), key=lambda item: not fills_lines(*item[1])))


def fills_lines(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a tensor's bytes are whole cache lines; in a file those stand first, so that each begins at one."""
    return math.prod(shape) * dtype.itemsize % ALIGNMENT == 0


def stored_llm(config: ModelConfig) -> dict[str, StoredTensor]:
    """The tensors of a converted language model, names, shapes and dtypes checked; no data is read.

    Raises:
        CheckpointError: the file is missing or damaged, or is not what ``config.json`` describes.
    """
    path, specs = config.path / SINGLE, packed_specs(config.llm, config.quantization)
    stored = read_file(path)
    wrong = [name for name, spec in specs.items() if name not in stored or _spec(stored[name]) != spec]
    wrong += [name for name in stored if name not in specs]
    if wrong:
        raise CheckpointError(
            f"{path} is not the {config.quantization.layers} model that {config.path / 'config.json'} describes; "
            f"missing, unexpected or of another shape or kind: {listing(wrong)}. {AGAIN}"
        )
    return {name: stored[name] for name in specs}


def stream_quantized(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Iterator[Named]:
    """Packed tensors by name; quantised ones as stored, the others in ``dtype``."""
    stored = stored_llm(config)
    if device.type != "meta" and verify_checksums():
        check_files(config.path, config.quantization)
    read = matrix_reader(config.path / SINGLE) if device.type == "cpu" else StoredTensor.read
    for name, tensor in stored.items():
        plain = scheme_of(name.removesuffix(".scale"), config.quantization) is None
        kind = dtype if plain else tensor.dtype
        if device.type == "meta":
            yield name, torch.empty(tensor.shape, dtype=kind, device="meta")
        elif is_matrix(name) and kind == tensor.dtype:
            yield name, read(tensor).to(device)
        else:
            yield name, tensor.read().to(device, kind)


def is_matrix(name: str) -> bool:
    """Whether every step reads the packed tensor from end to end: a matrix of layers or heads, or its scale."""
    return name.removesuffix(".scale").rpartition(".")[2] in MATRICES + HEADS


def matrix_reader(path: Path) -> Callable[[StoredTensor], torch.Tensor]:
    """How a matrix comes into the memory from which a CPU multiplies it: mapped, or copied to where its pages are large."""
    file = MappedFile(path)
    if not copy_small_pages() or not has_large_pages() or file.in_large_pages():
        return file.tensor
    logger.info("%s: its pages are small, matrices are copied into large ones", path)
    memory = WeightsMemory()
    return lambda tensor: memory.empty(tensor.shape, tensor.dtype).copy_(tensor.read())


def check_files(folder: Path, quantization: QuantizationConfig) -> None:
    """Compare every weight file with its recorded SHA-256; CheckpointError names the first that differs.

    Read as it will be used, mapped: the first reading decides in which pages the system keeps a file.
    """
    for name, recorded in quantization.sha256.items():
        path = folder / name
        digest = hashlib.sha256()
        size = path.stat().st_size
        with open(path, "rb") as file:
            for begin in range(0, size, CHECKED_BYTES):
                with map_file(file.fileno(), min(CHECKED_BYTES, size - begin), begin) as piece:
                    digest.update(piece)
        if digest.hexdigest() != recorded:
            raise CheckpointError(
                f"{path} does not match its checksum in {folder / 'config.json'}: the file was damaged or changed; {AGAIN}"
            )


def _spec(tensor: StoredTensor) -> tuple[tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.dtype


def _never(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} is read on the meta device")
