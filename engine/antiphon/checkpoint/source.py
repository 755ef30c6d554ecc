"""A part of the checkpoint, its keys checked by name, shape and kind before anything is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from . import expected as keys
from .expected import Shapes
from .pt_files import read_pt
from .safetensors_files import INDEX, SINGLE, read_folder
from .stored import StoredTensor, listing

ENCODER_PREFIX = "model.encoder."
FLOW_PREFIX = "speech_model."
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

LLM_EXTRAS = r".*\.rotary_emb\.inv_freq"
WHISPER_EXTRAS = r"model\.decoder\..*|proj_out\..*"
GLM_EXTRAS = WHISPER_EXTRAS + r"|ema_count|ema_weight|embed_positions2\..*|layer_norm\..*"


@dataclass(frozen=True)
class Source:
    """The tensors of one part under plain names (no prefix), complete and of the right shapes.

    ``shapes`` is the table they were checked against, ``where`` the file that holds them (an index if sharded),
    ``extras`` the names that were left out because the official files are known to carry them.
    """

    where: Path
    shapes: Shapes
    tensors: Mapping[str, StoredTensor]
    extras: tuple[str, ...] = ()

    def read(self, name: str) -> torch.Tensor:
        """The stored tensor ``name``, mapped from its file."""
        return self.tensors[name].read()

    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(sorted({tensor.path for tensor in self.tensors.values()}))


def llm_source(config: ModelConfig) -> Source:
    """The language model's tensors: ``model.safetensors`` or the shards of its index."""
    return _checked(_where(config.path), keys.llm_keys(config.llm), read_folder(config.path), LLM_EXTRAS)


def whisper_source(config: ModelConfig) -> Source:
    """The Whisper encoder's tensors without ``model.encoder.``; a decoder is left out."""
    folder = config.path / "whisper-large-v3"
    tensors = _without_prefix(read_folder(folder))
    return _checked(_where(folder), keys.whisper_keys(config.whisper), tensors, WHISPER_EXTRAS)


def speech_tokenizer_source(config: ModelConfig) -> Source:
    """The GLM tokenizer's tensors that influence a token, from files with bare or prefixed names (spec section 1)."""
    folder = config.speech_tokenizer_path
    part = config.speech_tokenizer
    tensors = _without_prefix(read_folder(folder))
    unused = re.compile(r"layers\.(\d+)\..*")
    late = [n for n in tensors if (m := unused.fullmatch(n)) and int(m[1]) >= part.encoder.num_layers]
    source = _checked(
        _where(folder),
        keys.speech_tokenizer_keys(part),
        {n: t for n, t in tensors.items() if n not in set(late)},
        GLM_EXTRAS,
    )
    return Source(source.where, source.shapes, source.tensors, (*source.extras, *late))


def flow_source(config: ModelConfig) -> Source:
    """The DiT's tensors: entries of ``state_dict`` whose name contains ``speech_model.``, that prefix removed."""
    if config.flow is None:
        raise ConfigError("the configuration was read without a detokenizer; use load_detokenizer=True")
    path = config.path / "audio_detokenizer" / "model.pt"
    stored = read_pt(path, "state_dict")
    tensors = _renamed(path, [(n, n.split(FLOW_PREFIX, 1)[1], t) for n, t in stored.items() if FLOW_PREFIX in n])
    extras = tuple(name for name in stored if FLOW_PREFIX not in name)
    source = _checked(path, keys.flow_keys(config.flow), tensors, "")
    return Source(source.where, source.shapes, source.tensors, extras)


def vocoder_source(config: ModelConfig) -> Source:
    """The vocoder's tensors, weight norm as stored."""
    if config.vocoder is None:
        raise ConfigError("the configuration was read without a detokenizer; use load_detokenizer=True")
    path = config.path / "vocoder" / "model.pt"
    return _checked(path, keys.vocoder_keys(config.vocoder), read_pt(path, "generator"), "")


def _where(folder: Path) -> Path:
    return folder / INDEX if (folder / INDEX).is_file() else folder / SINGLE


def _without_prefix(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return _renamed(None, [(name, name.removeprefix(ENCODER_PREFIX), tensor) for name, tensor in tensors.items()])


def _renamed(path: Path | None, triples: Iterable[tuple[str, str, StoredTensor]]) -> dict[str, StoredTensor]:
    renamed: dict[str, StoredTensor] = {}
    for old, new, tensor in triples:
        if new in renamed:
            raise CheckpointError(f"{path or tensor.path}: {renamed[new].name} and {old} are both {new}")
        renamed[new] = tensor
    return renamed


def _checked(where: Path, shapes: Shapes, tensors: Mapping[str, StoredTensor], extras: str) -> Source:
    """Leave out known extras, then compare names, shapes and kinds with ``shapes``; names keep the file's spelling."""
    known = re.compile(extras)
    left_out = tuple(name for name in tensors if name not in shapes and known.fullmatch(name))
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(left_out)}
    problems = []
    if missing := [name for name in shapes if name not in kept]:
        problems.append(f"missing keys: {listing(missing)}")
    if unexpected := [tensor.name for name, tensor in kept.items() if name not in shapes]:
        problems.append(f"unexpected keys: {listing(unexpected)}")
    both = [(tensor, shapes[name]) for name, tensor in kept.items() if name in shapes]
    if wrong := [f"{t.name} is {list(t.shape)}, expected {list(s)}" for t, s in both if t.shape != s]:
        problems.append(f"wrong shapes: {listing(wrong)}")
    if kinds := [f"{t.name} is {_dtype_name(t.dtype)}" for t, _ in both if t.dtype not in FLOAT_DTYPES]:
        problems.append(f"wrong kinds, expected float32, float16 or bfloat16: {listing(kinds)}")
    if problems:
        raise CheckpointError(
            f"{where} does not hold what its configuration describes; {'; '.join(problems)}. "
            "Check that weights and config files are of the same model"
        )
    return Source(where, shapes, kept, left_out)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
