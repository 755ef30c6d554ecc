"""Configurations, read from the official files. Nothing is hard-coded that a file states; unknown values raise.

Field names follow the files where they have a clear name and the field's standard terms where they do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import CheckpointError, ConfigError

NUM_SPECIAL_TOKENS = 421
OUTPUT_TYPES = ("text", "both")
SAMPLE_RATE_IN = 16_000
SAMPLE_RATE_OUT = 24_000
SAMPLES_PER_TOKEN_IN = 1280
FRAMES_PER_TOKEN = 4
HOP_OUT = 480


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens that the engine uses (spec section 2: id = number of base ranks + index)."""

    msg_end: int
    media_begin: int
    media_end: int
    text_blank: int
    text_eos: int
    user_start: int
    assistant_start: int
    speech_ct: int
    speech_ctd: int

    @classmethod
    def from_num_base(cls, num_base: int) -> SpecialTokens:
        """Ids for a tokenizer with ``num_base`` base ranks."""
        return cls(*(num_base + index for index in (2, 18, 20, 23, 24, 27, 28, 32, 33)))


@dataclass(frozen=True)
class LlmConfig:
    """Dual-head Qwen2.5. ``num_layers`` counts trunk and text branch; the audio branch adds ``num_audio_layers``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_audio_layers: int
    num_trunk_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    adaptor_input_dim: int
    audio_token_offset: int
    audio_delay: int
    max_positions: int
    special: SpecialTokens

    @property
    def num_text_layers(self) -> int:
        """Layers that only the text branch runs."""
        return self.num_layers - self.num_trunk_layers

    @property
    def qkv_size(self) -> int:
        """Rows of the packed q|k|v matrix."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @classmethod
    def from_file(cls, path: Path) -> LlmConfig:
        """Read the official ``config.json``."""
        c = _Reader(path)
        num_heads = c.integer("num_attention_heads")
        hidden = c.integer("hidden_size")
        if hidden % num_heads:
            raise ConfigError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {num_heads}")
        if c.get("tie_word_embeddings", False):
            raise ConfigError(f"{path}: tie_word_embeddings is true; Kimi-Audio has separate heads")
        if c.get("rope_scaling", None):
            raise ConfigError(f"{path}: rope_scaling {c.get('rope_scaling', None)} is not supported; expected null")
        offset = c.integer("kimia_token_offset")
        num_trunk = c.integer("kimia_mimo_transformer_from_layer_index") + 1
        config = cls(
            vocab_size=c.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=c.integer("intermediate_size"),
            num_layers=c.integer("num_hidden_layers"),
            num_audio_layers=c.integer("kimia_mimo_layers"),
            num_trunk_layers=num_trunk,
            num_heads=num_heads,
            num_kv_heads=c.integer("num_key_value_heads"),
            head_dim=hidden // num_heads,
            rope_theta=float(c.get("rope_theta", 1e6)),
            rms_norm_eps=float(c.get("rms_norm_eps", 1e-6)),
            adaptor_input_dim=c.integer("kimia_adaptor_input_dim"),
            audio_token_offset=offset,
            audio_delay=int(c.get("kimia_mimo_audiodelaytokens", 6)),
            max_positions=int(c.get("max_position_embeddings", 8192)),
            special=SpecialTokens.from_num_base(offset - NUM_SPECIAL_TOKENS),
        )
        stated = (c.integer("kimia_media_begin"), c.integer("kimia_media_end"))
        if stated != (config.special.media_begin, config.special.media_end):
            raise ConfigError(
                f"{path}: kimia_media_begin/end are {stated}, but kimia_token_offset {offset} puts them at "
                f"{(config.special.media_begin, config.special.media_end)}"
            )
        if not 0 < num_trunk <= config.num_layers or config.num_heads % config.num_kv_heads:
            raise ConfigError(f"{path}: layer or head counts do not fit together: {config}")
        return config


@dataclass(frozen=True)
class EncoderConfig:
    """A Whisper-shaped encoder: two convolutions, learned positions, pre-norm layers."""

    num_mel_bins: int
    d_model: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    max_positions: int

    @classmethod
    def from_file(cls, path: Path) -> EncoderConfig:
        """Read ``whisper-large-v3/config.json``."""
        c = _Reader(path)
        return cls(
            num_mel_bins=c.integer("num_mel_bins"),
            d_model=c.integer("d_model"),
            num_heads=c.integer("encoder_attention_heads"),
            ffn_dim=c.integer("encoder_ffn_dim"),
            num_layers=c.integer("encoder_layers"),
            max_positions=c.integer("max_source_positions"),
        )


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """GLM-4-Voice tokenizer; ``encoder.num_layers`` is the number of layers that influence a token."""

    encoder: EncoderConfig
    pooling_position: int
    pooling_size: int
    causal_block_size: int
    codebook_size: int

    @classmethod
    def from_file(cls, path: Path) -> SpeechTokenizerConfig:
        """Read ``glm-4-voice-tokenizer/config.json``."""
        c = _Reader(path)
        expected = {
            "encoder_causal_convolution": True,
            "encoder_causal_attention": False,
            "quantize_causal_encoder": False,
            "pooling_type": "avg",
        }
        for key, value in expected.items():
            if c.get(key, value) != value:
                raise ConfigError(f"{path}: {key} is {c.get(key, value)!r}; only {value!r} is supported")
        full = EncoderConfig.from_file(path)
        return cls(
            encoder=EncoderConfig(**{**full.__dict__, "num_layers": c.integer("quantize_position")}),
            pooling_position=c.integer("pooling_position"),
            pooling_size=c.integer("pooling_kernel_size"),
            causal_block_size=c.integer("quantize_causal_block_size"),
            codebook_size=c.integer("quantize_vocab_size"),
        )


@dataclass(frozen=True)
class FlowConfig:
    """Flow-matching DiT and the driver constants of its yaml (spec sections 10 and 11)."""

    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float
    num_mels: int
    semantic_vocab_size: int
    rope_base: float
    max_positions: int
    mel_mean: float
    mel_std: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def from_file(cls, path: Path) -> FlowConfig:
        """Read ``audio_detokenizer/config.yaml``. With ``normalize_mel`` false, mean is 0 and std is 1."""
        top = _Reader(path)
        dit = _Reader(path, _section(path, top, "model", "dit"))
        rope = dit.get("rope_params", {}) or {}
        if not dit.get("use_rope", True) or dit.get("position_embedding_type", "skip") != "skip":
            raise ConfigError(f"{path}: expected use_rope: true and position_embedding_type: skip")
        if dit.get("ffn_type", "vanilla_mlp") != "vanilla_mlp" or rope.get("rope_interpolation_factor", 1) != 1:
            raise ConfigError(f"{path}: expected ffn_type: vanilla_mlp and rope_interpolation_factor: 1")
        normalised = top.get("normalize_mel", False)
        return cls(
            hidden_size=dit.integer("hidden_size"),
            depth=dit.integer("depth"),
            num_heads=dit.integer("num_heads"),
            mlp_ratio=float(dit.get("mlp_ratio", 4)),
            num_mels=dit.integer("input_size"),
            semantic_vocab_size=dit.integer("semantic_vocab_size"),
            rope_base=float(rope.get("rope_base", 10000)),
            max_positions=int(rope.get("max_position_embeddings", 4096)),
            mel_mean=float(top.get("mel_mean", 0.0)) if normalised else 0.0,
            mel_std=float(top.get("mel_std", 1.0)) if normalised else 1.0,
        )


@dataclass(frozen=True)
class VocoderConfig:
    """BigVGAN (spec section 13)."""

    num_mels: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    use_tanh_at_final: bool
    use_bias_at_final: bool
    snake_logscale: bool
    sample_rate: int

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        hop = 1
        for rate in self.upsample_rates:
            hop *= rate
        return hop

    @classmethod
    def from_file(cls, path: Path) -> VocoderConfig:
        """Read ``vocoder/config.json``; absent ``use_*_at_final`` keys count as true."""
        c = _Reader(path)
        if str(c.get("resblock", "1")) != "1" or c.get("activation", "snakebeta") != "snakebeta":
            raise ConfigError(f"{path}: expected resblock '1' and activation 'snakebeta'")
        return cls(
            num_mels=c.integer("num_mels"),
            upsample_rates=tuple(c["upsample_rates"]),
            upsample_kernel_sizes=tuple(c["upsample_kernel_sizes"]),
            upsample_initial_channel=c.integer("upsample_initial_channel"),
            resblock_kernel_sizes=tuple(c["resblock_kernel_sizes"]),
            resblock_dilation_sizes=tuple(tuple(d) for d in c["resblock_dilation_sizes"]),
            use_tanh_at_final=bool(c.get("use_tanh_at_final", True)),
            use_bias_at_final=bool(c.get("use_bias_at_final", True)),
            snake_logscale=bool(c.get("snake_logscale", True)),
            sample_rate=int(c.get("sampling_rate", SAMPLE_RATE_OUT)),
        )


@dataclass(frozen=True)
class QuantizationConfig:
    """How a converted checkpoint stores the language model (``quantization_config`` in its ``config.json``).

    ``layers``, ``heads``: ``int8``, ``int4`` or ``bfloat16``. ``calibration``: name of the manifest whose activations chose
    the scales, None if weights were rounded to nearest. ``sha256``: of each weight file, by name.
    """

    layers: str
    heads: str
    calibration: str | None
    sha256: Mapping[str, str]

    METHOD: ClassVar[str] = "antiphon"
    FORMAT: ClassVar[int] = 1
    STORED: ClassVar[tuple[str, ...]] = ("int8", "int4", "bfloat16")

    @classmethod
    def from_file(cls, path: Path) -> QuantizationConfig | None:
        """Read ``config.json``; None for an official checkpoint, ConfigError for another library's quantisation."""
        values = _Reader(path).get("quantization_config", None)
        if values is None:
            return None
        c = _Reader(path, values if isinstance(values, dict) else {})
        found = (c.get("quant_method", None), c.get("format", None))
        if found != (cls.METHOD, cls.FORMAT):
            raise ConfigError(
                f"{path}: quantization_config is of method {found[0]!r}, format {found[1]!r}; only {cls.METHOD!r}, "
                f"format {cls.FORMAT} can be read. Convert the official checkpoint with `antiphon quantize`"
            )
        config = cls(c["layers"], c["heads"], c["calibration"], c["sha256"])
        if config.layers not in cls.STORED or config.heads not in cls.STORED or not isinstance(config.sha256, dict):
            raise ConfigError(f"{path}: quantization_config {values} is damaged; convert the checkpoint again")
        return config

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_file` reads."""
        return {"quant_method": self.METHOD, "format": self.FORMAT} | {
            "layers": self.layers,
            "heads": self.heads,
            "calibration": self.calibration,
            "sha256": dict(self.sha256),
        }


@dataclass(frozen=True)
class ModelConfig:
    """Everything the files state, one part each; the two speech parts are None without a detokenizer.

    ``quantization`` is None for an official checkpoint.
    """

    path: Path
    speech_tokenizer_path: Path
    llm: LlmConfig
    whisper: EncoderConfig
    speech_tokenizer: SpeechTokenizerConfig
    flow: FlowConfig | None
    vocoder: VocoderConfig | None
    quantization: QuantizationConfig | None = None


class _Reader:
    """A json or yaml mapping whose missing and mistyped keys are errors that name file and key."""

    def __init__(self, path: Path, values: dict[str, Any] | None = None):
        self.path = path
        self.values = _read_mapping(path) if values is None else values

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise ConfigError(f"{self.path}: key {key!r} is missing")
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        return self.values.get(key, default)

    def integer(self, key: str) -> int:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.path}: {key} must be an integer, got {value!r}")
        return value


def _section(path: Path, reader: _Reader, *keys: str) -> dict[str, Any]:
    values: Any = reader.values
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: section {'.'.join(keys)} is missing")
    return values


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a Kimi-Audio folder in the official layout has it")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be parsed: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a mapping, got {type(values).__name__}")
    return values
