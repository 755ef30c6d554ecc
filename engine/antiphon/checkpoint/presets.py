"""Model configurations by name: the released 7B, and smaller ones of the same proportions for synthetic checkpoints.

The smaller ones keep what shapes the work: head size 128, both branches, a fifth of the layers above the trunk, 16384
codes, the vocoder's rates and kernels, and encoders, DiT and vocoder of about their share of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..config import (
    NUM_SPECIAL_TOKENS,
    EncoderConfig,
    FlowConfig,
    LlmConfig,
    ModelConfig,
    SpecialTokens,
    SpeechTokenizerConfig,
    VocoderConfig,
)

NUM_CODES = 16384


def kimi_audio_7b(path: Path = Path("kimi-audio-7b")) -> ModelConfig:
    """The released Kimi-Audio-7B (reference behaviour section 16, design section 1)."""
    return ModelConfig(
        path=path,
        speech_tokenizer_path=path / "glm-4-voice-tokenizer",
        llm=_llm(
            hidden=3584, intermediate=18944, heads=28, kv_heads=4, layers=(22, 6, 6), num_base=151643, adaptor=5120
        ),
        whisper=_encoder(d_model=1280, heads=20, layers=32),
        speech_tokenizer=_speech_tokenizer(d_model=1280, heads=20, layers=16),
        flow=_flow(hidden=2304, depth=16, heads=18),
        vocoder=_vocoder(channels=2048),
    )


def half_billion(path: Path = Path("synthetic-0.5b")) -> ModelConfig:
    """A language model of 0.5 billion parameters with both heads, the other parts in proportion."""
    return ModelConfig(
        path=path,
        speech_tokenizer_path=path / "glm-4-voice-tokenizer",
        llm=_llm(hidden=1024, intermediate=4096, heads=8, kv_heads=2, layers=(16, 5, 5), num_base=15963, adaptor=2048),
        whisper=_encoder(d_model=512, heads=8, layers=8),
        speech_tokenizer=_speech_tokenizer(d_model=512, heads=8, layers=4),
        flow=_flow(hidden=512, depth=16, heads=4),
        vocoder=_vocoder(channels=512),
    )


def one_billion(path: Path = Path("synthetic-1b")) -> ModelConfig:
    """A language model of one billion parameters with both heads, the other parts in proportion."""
    return ModelConfig(
        path=path,
        speech_tokenizer_path=path / "glm-4-voice-tokenizer",
        llm=_llm(hidden=1536, intermediate=6144, heads=12, kv_heads=3, layers=(16, 5, 5), num_base=15963, adaptor=2560),
        whisper=_encoder(d_model=640, heads=10, layers=12),
        speech_tokenizer=_speech_tokenizer(d_model=640, heads=10, layers=6),
        flow=_flow(hidden=768, depth=16, heads=6),
        vocoder=_vocoder(channels=768),
    )


def nano(path: Path = Path("synthetic-nano")) -> ModelConfig:
    """The smallest useful model, for tests: some 200 thousand parameters, 256 text ranks, branches of unequal depth."""
    speech_tokenizer = replace(_speech_tokenizer(d_model=32, heads=2, layers=2), codebook_size=64)
    llm = _llm(
        hidden=64, intermediate=96, heads=4, kv_heads=2, layers=(2, 1, 2), num_base=256, adaptor=128, num_codes=64
    )
    return ModelConfig(
        path=path,
        speech_tokenizer_path=path / "glm-4-voice-tokenizer",
        llm=llm,
        whisper=_encoder(d_model=32, heads=2, layers=2),
        speech_tokenizer=speech_tokenizer,
        flow=replace(_flow(hidden=32, depth=2, heads=2), semantic_vocab_size=64),
        vocoder=replace(_vocoder(channels=128), resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),)),
    )


PRESETS: dict[str, Callable[[Path], ModelConfig]] = {
    "nano": nano,
    "0.5b": half_billion,
    "1b": one_billion,
    "7b": kimi_audio_7b,
}


def _llm(
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    layers: tuple[int, int, int],
    num_base: int,
    adaptor: int,
    num_codes: int = NUM_CODES,
) -> LlmConfig:
    """``layers`` counts trunk, text branch and audio branch; ``adaptor`` is four times Whisper's width."""
    trunk, text, audio = layers
    offset = num_base + NUM_SPECIAL_TOKENS
    return LlmConfig(
        vocab_size=offset + num_codes,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=trunk + text,
        num_audio_layers=audio,
        num_trunk_layers=trunk,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        adaptor_input_dim=adaptor,
        audio_token_offset=offset,
        audio_delay=6,
        max_positions=8192,
        special=SpecialTokens.from_num_base(num_base),
    )


def _encoder(d_model: int, heads: int, layers: int) -> EncoderConfig:
    return EncoderConfig(
        num_mel_bins=128, d_model=d_model, num_heads=heads, ffn_dim=4 * d_model, num_layers=layers, max_positions=1500
    )


def _speech_tokenizer(d_model: int, heads: int, layers: int) -> SpeechTokenizerConfig:
    return SpeechTokenizerConfig(
        encoder=_encoder(d_model, heads, layers),
        pooling_position=layers,
        pooling_size=4,
        causal_block_size=200,
        codebook_size=NUM_CODES,
    )


def _flow(hidden: int, depth: int, heads: int) -> FlowConfig:
    return FlowConfig(
        hidden_size=hidden,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4.0,
        num_mels=80,
        semantic_vocab_size=NUM_CODES,
        rope_base=10000.0,
        max_positions=4096,
        mel_mean=-4.479605,
        mel_std=3.4584913,
    )


def _vocoder(channels: int) -> VocoderConfig:
    return VocoderConfig(
        num_mels=80,
        upsample_rates=(5, 2, 2, 2, 2, 3, 2),
        upsample_kernel_sizes=(9, 4, 4, 4, 4, 5, 4),
        upsample_initial_channel=channels,
        resblock_kernel_sizes=(3, 5, 7, 11),
        resblock_dilation_sizes=((1, 3, 5),) * 4,
        use_tanh_at_final=False,
        use_bias_at_final=False,
        snake_logscale=True,
        sample_rate=24_000,
    )
