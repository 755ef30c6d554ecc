"""The official configuration files of a :class:`ModelConfig`: the inverse of ``config.py``'s readers."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..config import EncoderConfig, FlowConfig, LlmConfig, ModelConfig, SpeechTokenizerConfig, VocoderConfig

FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
}


def write_config_files(config: ModelConfig, folder: Path) -> None:
    """Write every json and yaml of the official layout into ``folder``; the two speech parts only if configured."""
    tokenizer = folder / "glm-4-voice-tokenizer"
    _json(folder / "config.json", _llm(config.llm))
    _json(folder / "whisper-large-v3" / "config.json", _encoder(config.whisper))
    _json(folder / "whisper-large-v3" / "preprocessor_config.json", FEATURES)
    _json(tokenizer / "config.json", _speech_tokenizer(config.speech_tokenizer))
    _json(tokenizer / "preprocessor_config.json", FEATURES)
    if config.flow is not None:
        path = folder / "audio_detokenizer" / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(_flow(config.flow), sort_keys=False), encoding="utf-8")
    if config.vocoder is not None:
        _json(folder / "vocoder" / "config.json", _vocoder(config.vocoder))


def write_byte_ranks(path: Path, num_ranks: int) -> None:
    """Write an untrained ``tiktoken.model``: 256 single bytes, then longer strings, printable ones first."""
    ranks = itertools.islice(_byte_strings(), num_ranks)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)]
    path.write_text("".join(lines), encoding="ascii")


def _byte_strings() -> Iterator[bytes]:
    """Every string's prefixes come before it, so every one can be reached by merging."""
    printable = range(32, 127)
    yield from (bytes([value]) for value in range(256))
    for length in itertools.count(2):
        yield from map(bytes, itertools.product(printable, repeat=length))


def _json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _llm(c: LlmConfig) -> dict[str, Any]:
    num_base = c.special.msg_end - 2
    return {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "model_type": "kimi_audio",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_positions,
        "tie_word_embeddings": False,
        "bos_token_id": num_base,
        "eos_token_ids": [num_base + 1, num_base + 9],
        "pad_token_id": c.audio_token_offset - 1,
        "num_base_tokens": num_base,
        "use_whisper_feature": True,
        "kimia_adaptor_input_dim": c.adaptor_input_dim,
        "kimia_media_begin": c.special.media_begin,
        "kimia_media_end": c.special.media_end,
        "kimia_mimo_audiodelaytokens": c.audio_delay,
        "kimia_mimo_layers": c.num_audio_layers,
        "kimia_mimo_transformer_from_layer_index": c.num_trunk_layers - 1,
        "kimia_text_output_vocab": c.audio_token_offset,
        "kimia_token_offset": c.audio_token_offset,
    }


def _encoder(c: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "whisper",
        "activation_function": "gelu",
        "num_mel_bins": c.num_mel_bins,
        "d_model": c.d_model,
        "encoder_attention_heads": c.num_heads,
        "encoder_ffn_dim": c.ffn_dim,
        "encoder_layers": c.num_layers,
        "max_source_positions": c.max_positions,
    }


def _speech_tokenizer(c: SpeechTokenizerConfig) -> dict[str, Any]:
    return _encoder(c.encoder) | {
        "architectures": ["WhisperVQEncoder"],
        "encoder_causal_attention": False,
        "encoder_causal_convolution": True,
        "pooling_kernel_size": c.pooling_size,
        "pooling_position": c.pooling_position,
        "pooling_type": "avg",
        "quantize_causal_block_size": c.causal_block_size,
        "quantize_causal_encoder": False,
        "quantize_encoder_only": True,
        "quantize_position": c.encoder.num_layers,
        "quantize_vocab_size": c.codebook_size,
    }


def _flow(c: FlowConfig) -> dict[str, Any]:
    rope = {"max_position_embeddings": c.max_positions, "rope_base": c.rope_base, "rope_interpolation_factor": 1}
    dit = {
        "hidden_size": c.hidden_size,
        "depth": c.depth,
        "num_heads": c.num_heads,
        "mlp_ratio": c.mlp_ratio,
        "ffn_type": "vanilla_mlp",
        "input_size": c.num_mels,
        "semantic_vocab_size": c.semantic_vocab_size,
        "position_embedding_type": "skip",
        "use_rope": True,
        "rope_params": rope,
        "max_seq_len": c.max_positions,
    }
    return {"normalize_mel": True, "mel_mean": c.mel_mean, "mel_std": c.mel_std, "model": {"dit": dit}}


def _vocoder(c: VocoderConfig) -> dict[str, Any]:
    return {
        "resblock": "1",
        "activation": "snakebeta",
        "snake_logscale": c.snake_logscale,
        "num_mels": c.num_mels,
        "upsample_rates": list(c.upsample_rates),
        "upsample_kernel_sizes": list(c.upsample_kernel_sizes),
        "upsample_initial_channel": c.upsample_initial_channel,
        "resblock_kernel_sizes": list(c.resblock_kernel_sizes),
        "resblock_dilation_sizes": [list(d) for d in c.resblock_dilation_sizes],
        "use_tanh_at_final": c.use_tanh_at_final,
        "use_bias_at_final": c.use_bias_at_final,
        "sampling_rate": c.sample_rate,
        "hop_size": c.hop,
    }
