"""The speech networks and the language model as plain PyTorch modules, written from the reference behaviour: yardsticks.

They do what the official code does on a CPU: nothing fused, modulations per frame, upsample and downsample filters as grouped
convolutions, keys and values concatenated, both branches run at every step. Weights are those of our own loaders, so weight norm
is folded, as the official vocoder does before inference. Sections: 8 (LLM), 11 (DiT), 13 (vocoder).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from antiphon.config import FlowConfig, LlmConfig, VocoderConfig

Weights = dict[str, Tensor]
Cache = list[tuple[Tensor, Tensor]]


def plain_snake(x: Tensor, alpha: Tensor, inv_beta: Tensor, up_filter: Tensor, down_filter: Tensor) -> Tensor:
    """The anti-aliased activation of x [N, C, T] as BigVGAN's PyTorch path computes it."""
    channels = x.shape[1]
    up, down = (taps.to(x.dtype).view(1, 1, -1).expand(channels, 1, -1) for taps in (up_filter, down_filter))
    x = F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), up, stride=2, groups=channels) * 2
    x = x[..., 15:-15]
    alpha, inv_beta = alpha.to(x.dtype)[None, :, None], inv_beta.to(x.dtype)[None, :, None]
    x = x + inv_beta * torch.pow(torch.sin(x * alpha), 2)
    return F.conv1d(F.pad(x, (5, 6), mode="replicate"), down, stride=2, groups=channels)


class PlainVocoder:
    """BigVGAN; call with mels [N, frames, num_mels]."""

    def __init__(self, config: VocoderConfig, weights: Weights):
        self.config, self.weights = config, weights

    def __call__(self, mel: Tensor) -> Tensor:
        """Samples [N, 480 frames], float32."""
        c = self.config
        x = self._conv("conv_pre", mel.to(self.weights["conv_pre.weight"].dtype).transpose(1, 2), 3)
        for i, (rate, kernel) in enumerate(zip(c.upsample_rates, c.upsample_kernel_sizes)):
            weight, bias = self._pair(f"ups.{i}.0")
            x = F.conv_transpose1d(x, weight, bias, stride=rate, padding=(kernel - rate) // 2)
            count = len(c.resblock_kernel_sizes)
            total = None
            for j in range(count):
                y = self._block(i * count + j, j, x)
                total = y if total is None else total + y
            x = total / count
        x = self._conv("conv_post", self._activate("activation_post", x), 3)
        x = torch.tanh(x) if c.use_tanh_at_final else x.clamp(-1, 1)
        return x[:, 0].float()

    def _block(self, number: int, kind: int, x: Tensor) -> Tensor:
        name, kernel = f"resblocks.{number}", self.config.resblock_kernel_sizes[kind]
        for i, dilation in enumerate(self.config.resblock_dilation_sizes[kind]):
            y = self._activate(f"{name}.activations.{2 * i}", x)
            y = self._conv(f"{name}.convs1.{i}", y, (kernel - 1) * dilation // 2, dilation)
            y = self._activate(f"{name}.activations.{2 * i + 1}", y)
            x = x + self._conv(f"{name}.convs2.{i}", y, (kernel - 1) // 2)
        return x

    def _conv(self, name: str, x: Tensor, padding: int, dilation: int = 1) -> Tensor:
        weight, bias = self._pair(name)
        return F.conv1d(x, weight, bias, padding=padding, dilation=dilation)

    def _activate(self, name: str, x: Tensor) -> Tensor:
        parts = ("act.alpha", "act.inv_beta", "upsample.filter", "downsample.lowpass.filter")
        return plain_snake(x, *(self.weights[f"{name}.{part}"] for part in parts))

    def _pair(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")


class PlainDit:
    """One network pass of the flow-matching DiT over one stream's rows."""

    def __init__(self, config: FlowConfig, weights: Weights):
        self.config, self.weights = config, weights

    def time(self, time: int) -> Tensor:
        """Vector [H] of an integer time."""
        table = self.weights["semantic_token_embedding.weight"]
        hidden = F.silu(self._linear("t_embedder.mlp.0", _sinusoid(time).to(table.dtype)))
        return self._linear("t_embedder.mlp.2", hidden)

    def __call__(self, x: Tensor, condition: Tensor, positions: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """x [n, mels], time vector plus semantic embedding of every row [n, H], cached keys and values [heads, rows, D] per
        layer → velocity [n, mels] and this pass's own keys and values."""
        modulation, rotary = F.silu(condition), _rotary(positions, self.config)
        x, own = self._linear("input_linear", x), []
        for i in range(self.config.depth):
            x, kv = self._block(f"blocks.{i}", x, modulation, rotary, None if cache is None else cache[i])
            own.append(kv)
        shift, scale = self._linear("final_layer.adaLN_modulation.1", modulation).chunk(2, -1)
        return self._linear("final_layer.linear", self._norm(x) * (1 + scale) + shift), own

    def _block(self, name: str, x: Tensor, modulation: Tensor, rotary: Tensor, cache) -> tuple[Tensor, tuple]:
        c = self.config
        shift1, scale1, gate1, shift2, scale2, gate2 = self._linear(f"{name}.adaLN_modulation.1", modulation).chunk(
            6, -1
        )
        qkv = self._linear(f"{name}.attn.qkv", self._norm(x) * (1 + scale1) + shift1)
        q, k, v = (part.unflatten(-1, (c.num_heads, -1)).transpose(0, 1) for part in qkv.chunk(3, -1))
        q, k = _rotate(q, rotary), _rotate(k, rotary)
        keys, values = (k, v) if cache is None else (torch.cat((cache[0], k), 1), torch.cat((cache[1], v), 1))
        attended = F.scaled_dot_product_attention(q[None], keys[None], values[None])[0]
        x = x + gate1 * self._linear(f"{name}.attn.proj", attended.transpose(0, 1).flatten(1))
        hidden = self._linear(f"{name}.mlp.fc1", self._norm(x) * (1 + scale2) + shift2)
        return x + gate2 * self._linear(f"{name}.mlp.fc2", F.gelu(hidden, approximate="tanh")), (k, v)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


class PlainLlm:
    """The dual-head Qwen2.5 for one request: all layers of both branches at every position, growing caches."""

    def __init__(self, config: LlmConfig, weights: Weights):
        self.config, self.weights = config, weights
        self.cache: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fused input [n, H] of the next positions → text and audio logits [V] of the last one."""
        c, w = self.config, self.weights
        start = self.cache["trunk.0.0"][0].shape[1] if self.cache else 0
        angles = torch.arange(start, start + len(x))[:, None] * c.rope_theta ** -(
            torch.arange(0, c.head_dim, 2) / c.head_dim
        )
        rotary = torch.cat((angles, angles), -1)
        for i in range(c.num_trunk_layers):
            x = self._layer(f"trunk.{i}", 0, x, rotary)
        logits = []
        for branch, (layers, head) in enumerate(((c.num_text_layers, "lm_head"), (c.num_audio_layers, "audio_head"))):
            y = x
            for j in range(layers):
                paired = w[f"upper.{j}.input_norm"].shape[0] == 2
                y = self._layer(f"upper.{j}", branch, y, rotary, branch if paired else 0)
            logits.append(F.linear(_rms_norm(y[-1:], w["final_norm"][branch], c.rms_norm_eps), w[head])[0])
        return logits[0], logits[1]

    def _layer(self, name: str, branch: int, x: Tensor, rotary: Tensor, part: int = 0) -> Tensor:
        c, w = self.config, {key: self.weights[f"{name}.{key}"][part] for key in LAYER}
        n, kv = len(x), c.num_kv_heads * c.head_dim
        qkv = F.linear(_rms_norm(x, w["input_norm"], c.rms_norm_eps), w["qkv_weight"], w["qkv_bias"])
        q, k, v = (t.view(n, -1, c.head_dim).transpose(0, 1) for t in qkv.split((c.num_heads * c.head_dim, kv, kv), -1))
        q, k = _rotate_half(q, rotary), _rotate_half(k, rotary)
        key = f"{name}.{branch}"
        if key in self.cache:
            k, v = (torch.cat((old, new), 1) for old, new in zip(self.cache[key], (k, v)))
        self.cache[key] = (k, v)
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=n > 1, enable_gqa=True)[0]
        x = x + F.linear(attended.transpose(0, 1).flatten(1), w["o_weight"])
        gate, up = F.linear(_rms_norm(x, w["post_norm"], c.rms_norm_eps), w["gate_up"]).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, w["down"])


LAYER = ("input_norm", "qkv_weight", "qkv_bias", "o_weight", "post_norm", "gate_up", "down")


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotate_half(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)


def _sinusoid(time: int) -> Tensor:
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    return torch.cat(((time * frequencies).cos(), (time * frequencies).sin()))


def _rotary(positions: Tensor, c: FlowConfig) -> Tensor:
    frequencies = c.rope_base ** -(torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim)
    angles = positions[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)
