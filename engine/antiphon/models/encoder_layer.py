"""What the two Whisper-shaped encoders share: normalisation, transformer layer (reference behaviour section 5.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from antiphon_kernels import encoder_attention, gelu

from .dense import Dense

LAYER_NORM_EPS = 1e-5


class LayerNorm:
    """Layer normalisation over the last dimension with the weights ``{name}.weight`` and ``{name}.bias``."""

    def __init__(self, weights: dict[str, torch.Tensor], name: str):
        self.weight, self.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)


class EncoderLayer:
    """``x += out(attn(ln(x)))``, ``x += fc2(gelu(fc1(ln(x))))`` with exact GELU.

    Weights, under ``layers.{index}.``: attn_norm, qkv [3d, d], out [d, d], mlp_norm, fc1 [f, d], fc2 [d, f], each with
    weight and bias (the middle third of qkv's bias is 0: keys have none).
    """

    def __init__(self, weights: dict[str, torch.Tensor], index: int, num_heads: int):
        prefix = f"layers.{index}"
        self.num_heads = num_heads
        self.attn_norm = LayerNorm(weights, f"{prefix}.attn_norm")
        self.mlp_norm = LayerNorm(weights, f"{prefix}.mlp_norm")
        self.qkv, self.out, self.fc1, self.fc2 = (
            Dense.named(weights, f"{prefix}.{name}") for name in ("qkv", "out", "fc1", "fc2")
        )

    def __call__(self, x: torch.Tensor, lengths: torch.Tensor, block: int) -> torch.Tensor:
        """``x`` [N, T, d]; ``lengths`` and ``block`` as in the operator ``encoder_attention``."""
        qkv = self.qkv(self.attn_norm(x))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        x = x + self.out(encoder_attention(q, k, v, lengths, block).flatten(2))
        return x + self.fc2(gelu(self.fc1(self.mlp_norm(x)), False))
