"""Activation-aware scales: input channels that are loud get finer weights (AWQ, Lin et al. 2023, arXiv 2306.00978).

A matrix W with inputs x becomes W * s over x / s, which is the same map; rounding W * s instead of W moves the rounding
error from loud channels to quiet ones. The division costs nothing at run time because whatever makes x takes it in:

    qkv, gate_up   the norm weights before them
    o              the v rows of qkv and their bias (query heads that share a key head share its scales)
    down           the up rows of gate_up

s = mean|x| ^ a per channel, centred, with the a of least squared error of the map's results on recorded rows. A group's int4
scale is then chosen by the error weighted with the mean square of x / s: by weight error alone it would clip the very
weights that were made large because they matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from antiphon_kernels.linear_weight import dequantize_weight, quantize_weight

from ..config import LlmConfig

InputRows = Mapping[str, Sequence[Tensor]]
"""Packed name of a matrix → for each of its branches, rows [n, in] that entered it (n may be 0)."""
EXPONENTS = (0.0, 0.2, 0.4, 0.6, 0.8)
QUIET = 1e-4
"""Channels quieter than this share of the mean count as this loud."""
MAX_OUTPUTS = 2048
"""Rows of a matrix that the search looks at."""


@dataclass(frozen=True)
class MatrixScales:
    """Factors of rows [B, out] and columns [B, in] of one matrix, and how much an error in a column counts [B, in]."""

    rows: Tensor
    columns: Tensor
    importance: Tensor


@dataclass(frozen=True)
class LayerScales:
    """Of one layer: what multiplies rows [B, out] and columns [B, in] of its matrices, how much an error in a column
    counts [B, in], and the layer's other tensors, changed."""

    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    importance: Mapping[str, Tensor]
    others: Mapping[str, Tensor]

    def of(self, name: str) -> MatrixScales:
        """What belongs to one matrix."""
        return MatrixScales(self.rows[name], self.columns[name], self.importance[name])


def choose_scales(layer: Mapping[str, Tensor], inputs: InputRows, scheme: str, config: LlmConfig) -> LayerScales:
    """Scales for the packed tensors of one layer; ``inputs`` by the matrices' names within it."""

    def search(name: str, shared: Callable[[Tensor], Tensor] = lambda loudness: loudness) -> Tensor:
        branches = zip(layer[name], inputs[name], strict=True)
        return torch.stack([_best_scale(weight, rows, scheme, shared) for weight, rows in branches])

    attended = search("o_weight", lambda loudness: _over_groups(loudness, config))
    inner = search("down")
    input_norm, qkv_columns = fold_norm(layer["input_norm"], search("qkv_weight"))
    post_norm, gate_up_columns = fold_norm(layer["post_norm"], search("gate_up"))
    values = _of_key_heads(attended, config)
    qkv_rows, gate_up_rows = _tail(layer["qkv_weight"], 1 / values), _tail(layer["gate_up"], 1 / inner)
    bias = (layer["qkv_bias"].float() * qkv_rows).to(layer["qkv_bias"].dtype)
    ones = torch.ones(layer["down"].shape[:2])
    columns = {"qkv_weight": qkv_columns, "o_weight": attended, "gate_up": gate_up_columns, "down": inner}
    return LayerScales(
        rows={"qkv_weight": qkv_rows, "o_weight": ones, "gate_up": gate_up_rows, "down": ones},
        columns=columns,
        importance={name: _mean_squares(inputs[name], scale) for name, scale in columns.items()},
        others={"input_norm": input_norm, "post_norm": post_norm, "qkv_bias": bias},
    )


def fold_norm(norm: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Norm weights [B, H] divided by ``scale``, rounded to their dtype, and what the columns behind them must then be
    multiplied with: exactly the quotient of the old and the new norm."""
    folded = (norm.float() / scale).to(norm.dtype)
    dead = folded == 0
    exact = norm.float() / torch.where(dead, 1, folded.float())
    return folded, torch.where(dead, 1, exact)


def _best_scale(weight: Tensor, rows: Tensor, scheme: str, shared: Callable[[Tensor], Tensor]) -> Tensor:
    """Scale [in] of least error for one branch's weight [out, in]; ones without rows."""
    if not len(rows):
        return torch.ones(weight.shape[1])
    x = F.pad(rows.float(), (0, weight.shape[1] - rows.shape[1]))
    some = weight[:: -(-weight.shape[0] // MAX_OUTPUTS)].float()
    wanted = x @ some.T
    loudness = shared(x.abs().mean(0))
    loudness = loudness.clamp_min(QUIET * loudness.mean())
    best, least = torch.ones_like(loudness), float("inf")
    for exponent in EXPONENTS:
        scale = loudness**exponent
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = (
            (x / scale @ _rounded(some * scale, scheme, (x / scale).square().mean(0)).T - wanted).square().sum().item()
        )
        if error < least:
            best, least = scale, error
    return best


def _rounded(weight: Tensor, scheme: str, importance: Tensor) -> Tensor:
    """What the weights stand for once quantised."""
    return dequantize_weight(*quantize_weight(weight, scheme, importance), torch.float32)


def _mean_squares(inputs: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Mean square [B, in] of each branch's rows over ``scale`` [B, in]; ones for a branch without rows."""
    width = scale.shape[1]
    squares = [
        F.pad(x.float().square().mean(0), (0, width - x.shape[1])) if len(x) else torch.ones(width) for x in inputs
    ]
    return torch.stack(squares) / scale.square()


def _over_groups(loudness: Tensor, config: LlmConfig) -> Tensor:
    """Loudness [Hq * D] with the mean over the query heads of each key head in place of each."""
    grouped = loudness.view(config.num_kv_heads, -1, config.head_dim)
    return grouped.mean(1, keepdim=True).expand_as(grouped).reshape(-1)


def _of_key_heads(scale: Tensor, config: LlmConfig) -> Tensor:
    """Scale [B, Hq * D], equal within groups → [B, Hkv * D]."""
    return scale.view(scale.shape[0], config.num_kv_heads, -1, config.head_dim)[:, :, 0].flatten(1)


def _tail(weight: Tensor, factors: Tensor) -> Tensor:
    """Row factors [B, out]: ones, then ``factors`` [B, n] for the last n rows."""
    rows = torch.ones(weight.shape[:2])
    rows[:, -factors.shape[1] :] = factors
    return rows
