"""The network that both audio encoders are: two convolutions, positions, layers, a last norm where there is one."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from antiphon_kernels.native import bind_encoder_pass

from ..config import EncoderConfig
from .dense import Dense
from .encoder_layer import LAYER_NORM_EPS, EncoderLayer, LayerNorm

if TYPE_CHECKING:
    from antiphon_kernels.native.encoder_pass import EncoderPass


class EncoderNetwork:
    """Log-mels to rows of 20 ms. Runs in the dtype and on the device of its weights.

    Args:
        weights: conv1, conv2, positions, layers.{i}.* and, where there is one, final_norm (weight and bias each; positions is
            a tensor).
        num_layers: those that run, of ``config.num_layers``.
        causal: convolutions see no later frame; otherwise one on each side.
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: EncoderConfig, num_layers: int, causal: bool):
        self.convolutions = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in ("conv1", "conv2")]
        self.positions = weights["positions"]
        self.layers = [EncoderLayer(weights, i, config.num_heads) for i in range(num_layers)]
        self.final_norm = LayerNorm(weights, "final_norm") if "final_norm.weight" in weights else None
        self.causal = causal

    def __call__(
        self, mels: torch.Tensor, lengths: torch.Tensor, block: int, wanted: int | None = None, *, bound: bool = True
    ) -> torch.Tensor:
        """[N, channels, 2T] -> [N, T, d], or the first ``wanted`` rows of each.

        ``lengths`` and ``block`` as in the operator ``encoder_attention``. ``bound``: one native call where there is one.
        """
        wanted = mels.shape[2] // 2 if wanted is None else wanted
        if bound and self._pass and self._pass.fits(mels):
            return self._pass(mels, wanted, lengths, block)
        x = mels.to(self.positions.dtype)
        for (weight, bias), stride in zip(self.convolutions, (1, 2)):
            x = F.pad(x, (2, 0)) if self.causal else x
            x = F.gelu(F.conv1d(x, weight, bias, stride=stride, padding=0 if self.causal else 1))
        x = x.transpose(1, 2) + self.positions[: x.shape[2]]
        for layer in self.layers:
            x = layer(x, lengths, block)
        x = x[:, :wanted]
        return self.final_norm(x) if self.final_norm else x

    @cached_property
    def _pass(self) -> EncoderPass | None:
        """A pass as one native call, made at the first; None elsewhere."""
        if self.positions.device.type != "cpu":
            return None
        maps = [Dense(weight.transpose(1, 2).flatten(1).contiguous(), bias) for weight, bias in self.convolutions]
        return bind_encoder_pass(maps, self.positions, self.layers, self.final_norm, self.causal, LAYER_NORM_EPS)
