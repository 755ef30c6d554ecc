"""Native convolutions of the vocoder: 1-D, transposed, and a stage's residual blocks as one call.

Weights are packed for the instruction set in use when they are bound. With AMX float32 operands are split into two bfloat16
parts each; the result is within 1e-5 of the largest output. Without AMX float32 convolutions of more than 16 channels take half
the products by Winograd's minimal filtering and twice the memory for weights. Up to 16 channels are computed in float32 whatever
the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import _native, operator
from ..conv1d import conv1d
from .arguments import DTYPES, fits, pointer


def supports(x, weight, bias, residual, dilation) -> bool:
    others = [t for t in (bias, residual) if t is not None]
    return fits(x, weight, *others) and weight.shape[2] % 2 == 1 and x.numel() > 0


class PackedConv:
    """A convolution that keeps the length, or with ``stride`` a transposed one to stride times the length.

    weight [O, C, k], k odd, or transposed [C, O, k] with k - 2 padding = stride; bias [O] or None. Neither is needed afterwards.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, dilation: int = 1, stride: int = 0, padding: int = 0
    ):
        weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
        self.dtype, self.stride = weight.dtype, stride or 1
        self.out_channels = weight.shape[1 if stride else 0]
        addresses = (DTYPES[weight.dtype], weight.data_ptr(), pointer(bias))
        if stride:
            self.native = _native.packed_conv_transpose(*addresses, *weight.shape, stride, padding)
        else:
            self.native = _native.packed_conv(*addresses, *weight.shape, dilation)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x [N, C, T] → [N, O, stride T], ``residual`` added."""
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        out = x.new_empty(x.shape[0], self.out_channels, x.shape[2] * self.stride)
        self.native.run(x.data_ptr(), pointer(residual), out.data_ptr(), x.shape[0], x.shape[2])
        return out


@conv1d.backend("native", devices=("cpu",), supports=supports)
def native_conv1d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, dilation: int
) -> torch.Tensor:
    """x [N, C, T], weight [O, C, k] → [N, O, T]."""
    return PackedConv(weight, bias, dilation=dilation)(x, residual)


class AmpBlocks:
    """A vocoder stage after its upsampling: the mean of ``num_blocks`` residual blocks.

    convs: (weight [C, C, k], bias [C], dilation) in the order in which they run, activations: the four parameters of the
    activation before each.
    """

    def __init__(self, num_blocks: int, convs: Sequence[tuple], activations: Sequence[Sequence[torch.Tensor]]):
        self.dtype, self.channels = convs[0][0].dtype, convs[0][0].shape[0]
        self._convs = [PackedConv(weight, bias, dilation=dilation) for weight, bias, dilation in convs]
        self._parameters = [[p.to(torch.float32).contiguous() for p in group] for group in activations]
        self._native = _native.AmpBlocks(
            DTYPES[self.dtype],
            self.channels,
            num_blocks,
            [conv.native for conv in self._convs],
            [[p.data_ptr() for p in group] for group in self._parameters],
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, C, T] → [N, C, T]."""
        if operator.counting:
            operator.calls["amp_blocks", "native"] += 1
        x = x.contiguous()
        out = torch.empty_like(x)
        self._native.run(x.data_ptr(), out.data_ptr(), x.shape[0], x.shape[2])
        return out
