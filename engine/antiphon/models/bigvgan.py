"""BigVGAN: mel frames to sound, 480 samples a frame (reference behaviour, section 13). Weight norm is folded at load.

Several mels run as one batch. Equal lengths simply stack. Unequal ones are padded on the right, and every layer is shown
what it would see alone: convolutions see zeros behind an item's end, activations see its last sample repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from antiphon_kernels import alias_free_snake, conv1d
from antiphon_kernels.native import bind_vocoder

from ..config import VocoderConfig
from ..upload import upload

if TYPE_CHECKING:
    from antiphon_kernels.native.vocoder import BoundVocoder

TAIL = 32
"""Samples recomputed at an item's end in a padded batch; an activation reaches 5 of them, so 16 already suffice."""


class BigVgan:
    """The generator of ``vocoder/``.

    ``weights``: official names with weight norm folded (``conv_pre.weight``, ``ups.0.0.weight``, …); per activation
    ``act.alpha`` (exponentiated), ``act.inv_beta``, ``upsample.filter`` and ``downsample.lowpass.filter`` [12].
    """

    bind = True
    """Whether a CPU may run bound native networks instead of operators, which is what a capture must see."""

    def __init__(self, config: VocoderConfig, weights: dict[str, torch.Tensor]):
        self.config = config
        self.weights = weights
        self.dtype, self.device = weights["conv_pre.weight"].dtype, weights["conv_pre.weight"].device

    def __call__(self, mel: torch.Tensor) -> torch.Tensor:
        """De-normalised mels of one length, [N, frames, num_mels], to samples float32 [N, hop * frames]."""
        return self._generate(mel, None)

    def run(self, mels: Sequence[torch.Tensor], max_padding: float | None = None) -> list[torch.Tensor]:
        """Vocode mels [frames_i, num_mels] of any lengths, each as if alone; returns float32 [hop * frames_i] each.

        Mels whose lengths differ by at most the share ``max_padding`` are padded to one batch; 0 batches equal lengths only.
        None: 0 on a CPU, where padding costs what it computes, a quarter elsewhere, where launches cost more.
        """
        if max_padding is None:
            max_padding = 0.0 if self.device.type == "cpu" else 0.25
        results: list[torch.Tensor] = [torch.empty(0)] * len(mels)
        for group in group_by_length([len(mel) for mel in mels], max_padding, self._min_padded_frames()):
            for index, wav in zip(group, self._run_group([mels[index] for index in group]), strict=True):
                results[index] = wav
        return results

    def _run_group(self, mels: list[torch.Tensor]) -> list[torch.Tensor]:
        lengths = [len(mel) for mel in mels]
        if lengths[0] == 0:
            return [torch.zeros(0, device=self.device) for _ in mels]
        if min(lengths) == max(lengths):
            return list(self._generate(torch.stack(mels), None))
        padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
        wav = self._generate(padded, *upload([np.array(lengths)], self.device))
        return [row[: self.config.hop * length] for row, length in zip(wav, lengths, strict=True)]

    def _min_padded_frames(self) -> int:
        """Below this many frames an item's tail does not fit before the first activation."""
        return -(-TAIL // self.config.upsample_rates[0])

    def _generate(self, mel: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """``lengths`` int64 [N] counts the valid frames of each item, None: all of them."""
        weights, config = self.weights, self.config
        x = mel.to(self.dtype).transpose(1, 2)
        if self._bound is None:
            x = conv1d(x, weights["conv_pre.weight"], weights["conv_pre.bias"], None, 1)
        else:
            x = self._bound.conv_pre(x)
        for stage, rate in enumerate(config.upsample_rates):
            x = self._upsample(stage, mask_tail(x, lengths))
            lengths = None if lengths is None else lengths * rate
            x = self._mean_of_blocks(stage, x, lengths)
        x = self._activation("activation_post", x, lengths)
        x = conv1d(x, weights["conv_post.weight"], weights.get("conv_post.bias"), None, 1)
        x = torch.tanh(x) if config.use_tanh_at_final else x.clamp(-1.0, 1.0)
        return x[:, 0].float()

    @cached_property
    def _bound(self) -> BoundVocoder | None:
        """The native networks with weights packed for this CPU (a second copy), made at the first call; None elsewhere."""
        return bind_vocoder(self.config, self.weights) if self.bind and self.device.type == "cpu" else None

    def _upsample(self, stage: int, x: torch.Tensor) -> torch.Tensor:
        if self._bound is not None:
            return self._bound.ups[stage](x)
        name, rate = f"ups.{stage}.0", self.config.upsample_rates[stage]
        padding = (self.config.upsample_kernel_sizes[stage] - rate) // 2
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv_transpose1d(x, weight, bias, stride=rate, padding=padding)

    def _mean_of_blocks(self, stage: int, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        if self._bound is not None and lengths is None:
            return self._bound.stages[stage](x)
        num_blocks = len(self.config.resblock_kernel_sizes)
        first = stage * num_blocks
        total = self._residual_block(first, x, lengths)
        for block in range(first + 1, first + num_blocks):
            total = total + self._residual_block(block, x, lengths)
        return total / num_blocks

    def _residual_block(self, block: int, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        name, kind = f"resblocks.{block}", block % len(self.config.resblock_kernel_sizes)
        for index, dilation in enumerate(self.config.resblock_dilation_sizes[kind]):
            y = self._activation(f"{name}.activations.{2 * index}", x, lengths)
            y = self._conv(f"{name}.convs1.{index}", y, None, dilation)
            y = self._activation(f"{name}.activations.{2 * index + 1}", y, lengths)
            x = self._conv(f"{name}.convs2.{index}", y, x, 1)
        return x

    def _conv(self, name: str, x: torch.Tensor, residual: torch.Tensor | None, dilation: int) -> torch.Tensor:
        return conv1d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], residual, dilation)

    def _activation(self, name: str, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        parameters = [
            self.weights[f"{name}.{part}"]
            for part in ("act.alpha", "act.inv_beta", "upsample.filter", "downsample.lowpass.filter")
        ]

        def activate(signal: torch.Tensor) -> torch.Tensor:
            return alias_free_snake(signal, *parameters)

        return activate(x) if lengths is None else activate_padded(activate, x, lengths)


def activate_padded(
    activate: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """``activate`` on x [N, C, T] as if item n ended at ``lengths[n]`` >= TAIL; zeros behind the ends.

    Only the last few samples of an item notice its end, so they alone are computed again, on a slice that really ends there.
    """
    out = activate(x)
    places = (lengths[:, None] - TAIL + torch.arange(TAIL, device=x.device))[:, None].expand(-1, x.shape[1], -1)
    tail = activate(x.gather(2, places))
    keep = TAIL // 2
    out = out.scatter(2, places[..., keep:], tail[..., keep:])
    return mask_tail(out, lengths)


def mask_tail(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """x [N, C, T] with zeros from ``lengths[n]`` on; None: unchanged."""
    if lengths is None:
        return x
    behind = torch.arange(x.shape[-1], device=x.device) >= lengths[:, None]
    return x.masked_fill(behind[:, None], 0.0)


def group_by_length(lengths: Sequence[int], max_padding: float, min_padded: int) -> list[list[int]]:
    """Indices grouped so that the longest of a group exceeds its shortest by at most ``max_padding`` of the longest.

    Lengths under ``min_padded`` (and with ``max_padding`` 0 all lengths) only meet their equals.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[groups[-1][0]] if groups else -1
        fits = lengths[index] >= min_padded and lengths[index] >= (1 - max_padding) * longest
        if groups and (lengths[index] == longest or fits):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
