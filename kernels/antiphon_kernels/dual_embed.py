"""Fused input of the language model.

    e = table[audio]
    e = (e + features[row]) * sqrt(2)      where row >= 0 (a continuous speech position)
    x = e + table[text]

Source: reference behaviour, section 8. Shapes: audio_ids, text_ids, feature_rows int64 [T]; table [V, H];
features [F, H] (adaptor outputs, the table's dtype) or None; result [T, H] in the table's dtype.
"""

from __future__ import annotations

import math

import torch

from .operator import Operator


def reference(
    audio_ids: torch.Tensor,
    text_ids: torch.Tensor,
    table: torch.Tensor,
    features: torch.Tensor | None,
    feature_rows: torch.Tensor,
) -> torch.Tensor:
    """The formula above, one gather per stream."""
    x = table[audio_ids]
    if features is not None:
        mixed = (x + features[feature_rows.clamp_min(0)]) * math.sqrt(2.0)
        x = torch.where((feature_rows >= 0)[:, None], mixed, x)
    return x + table[text_ids]


def fake(audio_ids, text_ids, table, features, feature_rows):
    return table.new_empty(audio_ids.shape[0], table.shape[1])


dual_embed = Operator(
    "dual_embed",
    "(Tensor audio_ids, Tensor text_ids, Tensor table, Tensor? features, Tensor feature_rows) -> Tensor",
    reference=reference,
    fake=fake,
)
