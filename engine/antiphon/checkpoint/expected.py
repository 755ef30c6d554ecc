"""The official key names and shapes of every part, derived from its configuration.

One table for both directions: checking what a file holds, and writing synthetic checkpoints.
"""

from __future__ import annotations

from ..config import EncoderConfig, FlowConfig, LlmConfig, SpeechTokenizerConfig, VocoderConfig

Shapes = dict[str, tuple[int, ...]]
TIME_SINUSOIDS = 256
FILTER_TAPS = 12


def llm_keys(c: LlmConfig) -> Shapes:
    """Keys of the language model (spec section 8)."""
    shapes: Shapes = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for i in range(c.num_layers):
        shapes |= _qwen_layer(f"model.layers.{i}", c)
    for i in range(c.num_audio_layers):
        shapes |= _qwen_layer(f"model.mimo_layers.{i}", c)
    h = c.hidden_size
    shapes |= {"model.norm.weight": (h,), "model.mimo_norm.weight": (h,)}
    shapes |= _linear("model.vq_adaptor.layers.0", h, c.adaptor_input_dim)
    shapes |= _linear("model.vq_adaptor.layers.3", h, h)
    shapes |= _norm("model.vq_adaptor.layers.4", h)
    return shapes | {"lm_head.weight": (c.vocab_size, h), "mimo_output.weight": (c.vocab_size, h)}


def encoder_keys(c: EncoderConfig) -> Shapes:
    """Keys of a Whisper encoder without the prefix ``model.encoder.`` and without the final layer norm."""
    d = c.d_model
    shapes: Shapes = {
        "conv1.weight": (d, c.num_mel_bins, 3),
        "conv1.bias": (d,),
        "conv2.weight": (d, d, 3),
        "conv2.bias": (d,),
        "embed_positions.weight": (c.max_positions, d),
    }
    for i in range(c.num_layers):
        layer = f"layers.{i}"
        shapes |= _linear(f"{layer}.self_attn.q_proj", d, d)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (d, d)
        shapes |= _linear(f"{layer}.self_attn.v_proj", d, d)
        shapes |= _linear(f"{layer}.self_attn.out_proj", d, d)
        shapes |= _norm(f"{layer}.self_attn_layer_norm", d)
        shapes |= _linear(f"{layer}.fc1", c.ffn_dim, d)
        shapes |= _linear(f"{layer}.fc2", d, c.ffn_dim)
        shapes |= _norm(f"{layer}.final_layer_norm", d)
    return shapes


def whisper_keys(c: EncoderConfig) -> Shapes:
    """Keys of the Whisper encoder without the prefix ``model.encoder.`` (spec section 6)."""
    return encoder_keys(c) | _norm("layer_norm", c.d_model)


def speech_tokenizer_keys(c: SpeechTokenizerConfig) -> Shapes:
    """Keys of the GLM-4-Voice tokenizer that influence a token, without a prefix (spec section 5)."""
    return encoder_keys(c.encoder) | {"codebook.weight": (c.codebook_size, c.encoder.d_model)}


def flow_keys(c: FlowConfig) -> Shapes:
    """Keys of the flow-matching DiT without the prefix ``speech_model.`` (spec section 11)."""
    h, mlp = c.hidden_size, int(c.hidden_size * c.mlp_ratio)
    shapes = _linear("t_embedder.mlp.0", h, TIME_SINUSOIDS) | _linear("t_embedder.mlp.2", h, h)
    shapes["semantic_token_embedding.weight"] = (c.semantic_vocab_size + 1, h)
    shapes |= _linear("input_linear", h, c.num_mels)
    for i in range(c.depth):
        block = f"blocks.{i}"
        shapes |= _linear(f"{block}.attn.qkv", 3 * h, h) | _linear(f"{block}.attn.proj", h, h)
        shapes |= _linear(f"{block}.mlp.fc1", mlp, h) | _linear(f"{block}.mlp.fc2", h, mlp)
        shapes |= _linear(f"{block}.adaLN_modulation.1", 6 * h, h)
    shapes |= _linear("final_layer.linear", c.num_mels, h)
    return shapes | _linear("final_layer.adaLN_modulation.1", 2 * h, h)


def vocoder_keys(c: VocoderConfig) -> Shapes:
    """Keys of BigVGAN with its weight norm as stored (spec section 13)."""
    channels = c.upsample_initial_channel
    shapes = _weight_norm("conv_pre", (channels, c.num_mels, 7), channels)
    num_kernels = len(c.resblock_kernel_sizes)
    for i, kernel in enumerate(c.upsample_kernel_sizes):
        source, channels = channels, c.upsample_initial_channel >> (i + 1)
        shapes |= _weight_norm(f"ups.{i}.0", (source, channels, kernel), channels)
        for j, (size, dilations) in enumerate(zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes)):
            shapes |= _residual_block(f"resblocks.{i * num_kernels + j}", channels, size, len(dilations))
    shapes |= _activation("activation_post", channels)
    return shapes | _weight_norm("conv_post", (1, channels, 7), 1 if c.use_bias_at_final else 0)


def _qwen_layer(name: str, c: LlmConfig) -> Shapes:
    h, kv, inner = c.hidden_size, c.num_kv_heads * c.head_dim, c.intermediate_size
    shapes = {f"{name}.input_layernorm.weight": (h,), f"{name}.post_attention_layernorm.weight": (h,)}
    shapes |= _linear(f"{name}.self_attn.q_proj", c.num_heads * c.head_dim, h)
    shapes |= _linear(f"{name}.self_attn.k_proj", kv, h) | _linear(f"{name}.self_attn.v_proj", kv, h)
    shapes[f"{name}.self_attn.o_proj.weight"] = (h, c.num_heads * c.head_dim)
    shapes[f"{name}.mlp.gate_proj.weight"] = shapes[f"{name}.mlp.up_proj.weight"] = (inner, h)
    return shapes | {f"{name}.mlp.down_proj.weight": (h, inner)}


def _residual_block(name: str, channels: int, kernel: int, num_dilations: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(num_dilations):
        for convs in ("convs1", "convs2"):
            shapes |= _weight_norm(f"{name}.{convs}.{i}", (channels, channels, kernel), channels)
    for i in range(2 * num_dilations):
        shapes |= _activation(f"{name}.activations.{i}", channels)
    return shapes


def _activation(name: str, channels: int) -> Shapes:
    taps = (1, 1, FILTER_TAPS)
    return {
        f"{name}.act.alpha": (channels,),
        f"{name}.act.beta": (channels,),
        f"{name}.upsample.filter": taps,
        f"{name}.downsample.lowpass.filter": taps,
    }


def _weight_norm(name: str, shape: tuple[int, int, int], bias: int) -> Shapes:
    shapes: Shapes = {f"{name}.weight_g": (shape[0], 1, 1), f"{name}.weight_v": shape}
    return shapes | ({f"{name}.bias": (bias,)} if bias else {})


def _linear(name: str, out_features: int, in_features: int) -> Shapes:
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
