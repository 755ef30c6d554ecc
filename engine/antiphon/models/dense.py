"""One linear map over rows of any leading shape, for the networks beside the language model."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F

from antiphon_kernels.linear import linear
from antiphon_kernels.linear_compact import linear_compact
from antiphon_kernels.linear_fixed import FixedWeight, linear_fixed, pack_fixed
from antiphon_kernels.linear_panels import linear_panels
from antiphon_kernels.native import prefers_fixed


class Dense:
    """``weight`` [out, in], ``bias`` [out]: x [..., in] → [..., out]. With ``codes`` the weight is compact (``linear_compact``), of
    three dimensions in panels (``linear_panels``).

    On a GPU the vendor's library, which is best at hundreds of rows; on a CPU the operator of the weight's kind or ``linear``,
    except that float32 goes through ``linear_fixed`` where the CPU has integer tiles, with weights packed at the first call
    (a second copy, three bytes a weight).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, codes: torch.Tensor | None = None):
        self.weight, self.bias, self.codes = weight, bias, codes

    @classmethod
    def named(cls, weights: dict[str, torch.Tensor], name: str) -> Dense:
        """``{name}.weight``, ``{name}.bias`` and, of a compact weight, ``{name}.weight.scale``."""
        return cls(weights[f"{name}.weight"], weights[f"{name}.bias"], weights.get(f"{name}.weight.scale"))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return F.linear(x, self.weight, self.bias)
        rows = x.flatten(0, -2)
        if self.codes is not None:
            out = linear_compact(rows, self.weight[None], self.codes, self.bias[None], rows.shape[0])
        elif self.weight.ndim == 3:
            out = linear_panels(rows, self.weight, self.bias)
        elif prefers_fixed(self.weight):
            out = linear_fixed(rows, *self.fixed, self.bias)
        else:
            out = linear(rows, self.weight[None], self.bias[None], rows.shape[0])
        return out.unflatten(0, x.shape[:-1])

    @cached_property
    def fixed(self) -> FixedWeight:
        """The weight as ``linear_fixed`` takes it."""
        return pack_fixed(self.weight)
