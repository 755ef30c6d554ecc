"""The whole model with weights that have shapes only, for use inside ``fake_cuda()``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint import expected, packing
from ..checkpoint.packing import Packer
from ..checkpoint.quantized import HEADS, MATRICES, packed_specs
from ..config import LlmConfig, ModelConfig, QuantizationConfig
from ..models.bigvgan import BigVgan
from ..models.dual_qwen import DualQwen
from ..models.flow_dit import FlowDit
from ..models.speech_tokenizer import SpeechTokenizer
from ..models.whisper_encoder import WhisperEncoder

META = torch.device("meta")
HEAD_SCHEME = "int8"
"""Both output heads of an int8 or int4 model."""


@dataclass(frozen=True)
class FakeModel:
    """All parts; ``weight_bytes`` by part."""

    config: ModelConfig
    llm: DualQwen
    whisper: WhisperEncoder
    tokenizer: SpeechTokenizer
    flow: FlowDit
    vocoder: BigVgan
    weight_bytes: dict[str, int]


Shapes = dict[str, dict[str, Tensor]]


def packed_shapes(config: ModelConfig, quant: str | None = None, dtype: torch.dtype = torch.bfloat16) -> Shapes:
    """Every packed tensor of every part on the meta device, as the loaders would make them; call it outside fake mode.

    ``quant``: "int8", "int4" or "fp8" for the language model's matrices, None for ``dtype``.
    """

    def packer(shapes: expected.Shapes, kind: torch.dtype = dtype) -> Packer:
        return Packer(shapes, lambda name: torch.empty(shapes[name], device=META), kind, META)

    whisper = packer(expected.whisper_keys(config.whisper))
    norms = {f"final_norm.{kind}": whisper.join(f"layer_norm.{kind}") for kind in ("weight", "bias")}
    codes = packer(expected.speech_tokenizer_keys(config.speech_tokenizer), torch.float32)
    encoder = config.speech_tokenizer.encoder
    return {
        "llm": _language_model(config.llm, quant, dtype),
        "whisper": dict(packing.pack_encoder(whisper, config.whisper)) | norms,
        "tokenizer": dict(packing.pack_encoder(codes, encoder)) | {"codebook": codes.join("codebook.weight")},
        "flow": dict(packing.pack_plain(packer(expected.flow_keys(config.flow)))),
        "vocoder": dict(packing.pack_vocoder(packer(expected.vocoder_keys(config.vocoder)), config.vocoder)),
    }


def _language_model(config: LlmConfig, quant: str | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Packed tensors, matrices and heads in the scheme ``quant``."""
    if quant in ("int8", "int4"):
        specs = packed_specs(config, QuantizationConfig(quant, HEAD_SCHEME, None, {}))
        return {name: torch.empty(shape, dtype=kind, device=META) for name, (shape, kind) in specs.items()}
    shapes = expected.llm_keys(config)
    packer = Packer(shapes, lambda name: torch.empty(shapes[name], device=META), dtype, META)
    weights = dict(packing.pack_llm(packer, config))
    for name in [n for n in weights if quant == "fp8" and n.rsplit(".", 1)[-1] in (*MATRICES, *HEADS)]:
        weights[f"{name}.scale"] = torch.empty(weights[name].shape[:-1], dtype=torch.float32, device=META)
        weights[name] = weights[name].to(torch.float8_e4m3fn)
    return weights


def build(config: ModelConfig, shapes: Shapes, device: torch.device) -> FakeModel:
    """The parts over fake tensors of ``shapes`` on ``device``."""
    weights = {part: _fake(named.items(), device) for part, named in shapes.items()}
    return FakeModel(
        config=config,
        llm=DualQwen(config.llm, weights["llm"]),
        whisper=WhisperEncoder(weights["whisper"], config.whisper),
        tokenizer=SpeechTokenizer(weights["tokenizer"], config.speech_tokenizer),
        flow=FlowDit(config.flow, weights["flow"]),
        vocoder=BigVgan(config.vocoder, weights["vocoder"]),
        weight_bytes={part: sum(t.nbytes for t in named.values()) for part, named in shapes.items()},
    )


def _fake(named: Iterable[tuple[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in named}
