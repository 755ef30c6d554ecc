"""A whole pass of an audio encoder as one native call: convolutions, positions, layers and the last norm.

The kernels are the operators'; the layer norms are our own, so results differ from PyTorch's in the last bits. Convolutions of
three taps are linear maps over three neighbouring rows, which lie side by side in memory. In the last layer only the rows that
somebody wants go beyond their keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _native, operator
from .arguments import DTYPES, are, pointer
from .network_pass import Dense, addresses, chosen, fit_tiles

PADDING = 2
"""Rows of zeros around a segment's frames."""


class Norm(Protocol):
    """A layer norm: weight [hidden], bias [hidden]."""

    weight: Tensor
    bias: Tensor


class Layer(Protocol):
    """A transformer layer (``models/encoder_layer.py``)."""

    num_heads: int
    attn_norm: Norm
    mlp_norm: Norm
    qkv: Dense
    out: Dense
    fc1: Dense
    fc2: Dense


def linears(convolutions: Sequence[Dense], layers: Sequence[Layer]) -> list[Dense]:
    """All linear maps in the order in which the C++ side takes them."""
    return [*convolutions, *(m for layer in layers for m in (layer.qkv, layer.out, layer.fc1, layer.fc2))]


def norms(layers: Sequence[Layer], final: Norm | None) -> list[Norm]:
    """All norms in that order."""
    return [*(n for layer in layers for n in (layer.attn_norm, layer.mlp_norm)), *([final] if final else [])]


def available_for(
    convolutions: Sequence[Dense], positions: Tensor, layers: Sequence[Layer], final_norm: Norm | None
) -> bool:
    """True if all weights are contiguous on the CPU, of one native dtype and of sizes that tiles take."""
    if not layers or not fit_tiles(linears(convolutions, layers)):
        return False
    return are(positions.dtype, positions, *(t for n in norms(layers, final_norm) for t in (n.weight, n.bias)))


class EncoderPass:
    """Bound to one network; keeps its weights alive. Check :func:`available_for` first. ``bound`` is the C++ object.

    Args:
        convolutions: both as linear maps, weight [d, 3 channels] with the taps outermost.
        positions: [max_positions, d].
        causal: convolutions see no later frame.
        eps: of the layer norms.
    """

    def __init__(
        self,
        convolutions: Sequence[Dense],
        positions: Tensor,
        layers: Sequence[Layer],
        final_norm: Norm | None,
        causal: bool,
        eps: float,
    ):
        maps, scales = linears(convolutions, layers), norms(layers, final_norm)
        self._kept = maps, scales, positions
        self._hidden, self._dtype, self._leading = positions.shape[1], positions.dtype, PADDING if causal else 1
        vectors = [t.data_ptr() for n in scales for t in (n.weight, n.bias)]
        self.bound = _native.EncoderPass(
            DTYPES[self._dtype],
            layers[0].num_heads,
            eps,
            self._leading,
            positions.data_ptr(),
            [addresses(m) for m in maps],
            vectors + ([] if final_norm else [0, 0]),
        )

    def fits(self, mels: Tensor) -> bool:
        """True if there are whole rows, each with a position, and the native backend is in use."""
        frames = mels.shape[-1]
        return len(mels) > 0 and 0 < frames <= 2 * len(self._kept[2]) and frames % 2 == 0 and chosen()

    def __call__(self, mels: Tensor, wanted: int, lengths: Tensor, block: int) -> Tensor:
        """The first ``wanted`` rows of each segment: mels [N, channels, 2T] -> [N, wanted, d].

        ``lengths`` and ``block`` as in the operator ``encoder_attention``.
        """
        if operator.counting:
            operator.calls["encoder_pass", "native"] += 1
        edges = (0, 0, self._leading, PADDING - self._leading)
        rows = F.pad(mels.transpose(1, 2).to(self._dtype), edges).contiguous()
        lengths = lengths.to(torch.int64).contiguous()
        out = rows.new_empty(len(mels), wanted, self._hidden)
        sizes = [len(mels), mels.shape[2], wanted, block]
        self.bound.run(sizes, rows.data_ptr(), pointer(lengths), out.data_ptr())
        return out
