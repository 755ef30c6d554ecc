"""Loading: one function per part, official files in, packed tensors out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from antiphon_kernels.native import empty_rows
from antiphon_kernels.weights_memory import WeightsMemory, empty_apart

from ..config import ModelConfig
from ..errors import ConfigError
from . import packing, quantized, source
from .compact import compact_matrices, obstacle_in_files
from .network_weights import Arrangement, arrange
from .packing import Allocate, Named, Packer

Weights = dict[str, torch.Tensor]
Device = torch.device | str


def load_llm(
    config: ModelConfig, dtype: torch.dtype = torch.bfloat16, device: Device = "cpu", compact: bool = False
) -> Weights:
    """The language model's packed weights; ``compact``: bfloat16 matrices as ``checkpoint.compact`` makes them, in float32 of files in
    bfloat16.

    ``embed`` [V, H]; ``trunk.{i}.`` and ``upper.{j}.`` each with ``input_norm`` [B, H], ``qkv_weight`` [B, Q, H],
    ``qkv_bias`` [B, Q], ``o_weight`` [B, H, H], ``post_norm`` [B, H], ``gate_up`` [B, 2I, H], ``down`` [B, H, I];
    ``final_norm`` [2, H] (text, audio); ``lm_head``, ``audio_head`` [V, H]; ``adaptor.{0,3,4}.{weight,bias}``.
    B is 1 in the trunk, 2 (text, audio) where both branches have the layer, 1 for the longer branch's extra layers.
    Of a converted checkpoint: see ``checkpoint.quantized``; a tensor that is on the right device in the right dtype stays
    mapped from the file.

    Raises:
        CheckpointError: a file is missing or damaged, or its keys, shapes or kinds are not those of the configuration.
        ConfigError: ``compact``, and files without bfloat16 matrices, or that keep more in ``dtype`` than bfloat16 holds.
    """
    if compact:
        if (problem := obstacle_in_files(config, dtype)) is not None:
            raise ConfigError(problem)
        return dict(compact_matrices(stream_llm(config, torch.bfloat16, device, empty_apart), dtype))
    return dict(stream_llm(config, dtype, device, WeightsMemory().empty))


def stream_llm(
    config: ModelConfig, dtype: torch.dtype, device: Device = "cpu", allocate: Allocate = torch.empty
) -> Iterator[Named]:
    """As :func:`load_llm`, one (name, tensor) at a time: a consumer that quantises holds one full-width tensor.

    ``allocate``: where packed tensors go, as ``torch.empty``.
    """
    if config.quantization is not None:
        yield from quantized.stream_quantized(config, dtype, torch.device(device))
        return
    part = source.llm_source(config)
    yield from packing.pack_llm(_packer(part, dtype, device, allocate=allocate), config.llm)


def load_whisper(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    device: Device = "cpu",
    arrangement: Arrangement = Arrangement.PLAIN,
) -> Weights:
    """The Whisper encoder's packed weights, its linear maps in an arrangement of ``checkpoint.network_weights``.

    ``conv1``, ``conv2`` ``.weight`` [d, in, 3], ``.bias``; ``positions`` [1500, d]; ``layers.{i}.`` with ``attn_norm``,
    ``qkv`` [3d, d] (k's bias is zero), ``out``, ``mlp_norm``, ``fc1``, ``fc2``; ``final_norm``; all with
    ``.weight`` and ``.bias``.
    """
    part = source.whisper_source(config)
    packer = _network_packer(part, dtype, device, arrangement)
    weights = dict(packing.pack_encoder(packer, config.whisper))
    weights |= {f"final_norm.{kind}": packer.join(f"layer_norm.{kind}") for kind in ("weight", "bias")}
    return arrange(weights, arrangement)


def load_speech_tokenizer(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    arrangement: Arrangement = Arrangement.PLAIN,
) -> Weights:
    """The GLM tokenizer's packed weights: as :func:`load_whisper` without ``final_norm``, with ``codebook`` [K, d]."""
    part = source.speech_tokenizer_source(config)
    packer = _network_packer(part, dtype, device, arrangement)
    weights = dict(packing.pack_encoder(packer, config.speech_tokenizer.encoder))
    return arrange(weights, arrangement) | {"codebook": packer.join("codebook.weight")}


def load_flow(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    device: Device = "cpu",
    arrangement: Arrangement = Arrangement.PLAIN,
) -> Weights:
    """The DiT's weights under their official names without ``speech_model.``; ``arrangement`` as in :func:`load_whisper`."""
    weights = dict(packing.pack_plain(_network_packer(source.flow_source(config), dtype, device, arrangement)))
    return arrange(weights, arrangement)


def load_vocoder(config: ModelConfig, dtype: torch.dtype = torch.bfloat16, device: Device = "cpu") -> Weights:
    """The vocoder's weights, weight norm folded.

    Convolutions keep their official names with ``.weight``, ``.bias``. Each activation X (``activation_post`` and
    ``resblocks.{n}.activations.{l}``) has ``X.act.alpha`` and ``X.act.inv_beta`` = 1 / (beta + 1e-9) [C], exponentials
    taken if ``snake_logscale``, and ``X.upsample.filter``, ``X.downsample.lowpass.filter`` [12]; these four are float32
    whatever ``dtype``.
    """
    part = source.vocoder_source(config)
    return dict(packing.pack_vocoder(_packer(part, dtype, device), config.vocoder))


def _network_packer(part: source.Source, dtype: torch.dtype, device: Device, arrangement: Arrangement) -> Packer:
    """Of a network whose linear maps native passes may take; what will be arranged is soon replaced."""
    allocate = WeightsMemory().empty if arrangement is Arrangement.PLAIN else empty_apart
    return _packer(part, dtype, device, partial(empty_rows, allocate=allocate), allocate)


def _packer(
    part: source.Source,
    dtype: torch.dtype,
    device: Device,
    matrix: Allocate = torch.empty,
    allocate: Allocate = torch.empty,
) -> Packer:
    return Packer(part.shapes, part.read, dtype, torch.device(device), part.where, matrix, allocate)
