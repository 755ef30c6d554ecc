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
from .triton_support import cdiv, check, jit, launch, supported_dtype, tl


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


@jit
def dual_embed_kernel(
    audio_ids, text_ids, table, features, feature_rows, out, hidden: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: BLOCK columns of one row. Sums in float32, one rounding at the store."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < hidden
    x = tl.load(table + tl.load(audio_ids + row) * hidden + cols, inside, 0.0).to(tl.float32)
    if features is not None:
        feature = tl.load(feature_rows + row)
        if feature >= 0:
            x = (x + tl.load(features + feature * hidden + cols, inside, 0.0).to(tl.float32)) * 1.4142135623730951
    x += tl.load(table + tl.load(text_ids + row) * hidden + cols, inside, 0.0).to(tl.float32)
    tl.store(out + row * hidden + cols, x.to(out.dtype.element_ty), inside)


def dual_embed_triton(
    audio_ids: torch.Tensor,
    text_ids: torch.Tensor,
    table: torch.Tensor,
    features: torch.Tensor | None,
    feature_rows: torch.Tensor,
) -> torch.Tensor:
    """Launch over [T, H / 1024] programs; ids are int64 and contiguous."""
    check(table.is_contiguous() and (features is None or features.is_contiguous()), "table and features: contiguous")
    num_rows, hidden = audio_ids.shape[0], table.shape[1]
    out = torch.empty(num_rows, hidden, dtype=table.dtype, device=table.device)
    launch(
        dual_embed_kernel, (num_rows, cdiv(hidden, 1024)), audio_ids.contiguous(), text_ids.contiguous(), table, features,
        feature_rows.contiguous(), out, hidden=hidden, BLOCK=1024,
    )  # fmt: skip
    return out


def fake(audio_ids, text_ids, table, features, feature_rows):
    return table.new_empty(audio_ids.shape[0], table.shape[1])


dual_embed = Operator(
    "dual_embed",
    "(Tensor audio_ids, Tensor text_ids, Tensor table, Tensor? features, Tensor feature_rows) -> Tensor",
    reference=reference,
    fake=fake,
)
dual_embed.backend("triton", devices=("cuda",), supports=lambda a, t, table, features, r: supported_dtype(table, features))(
    dual_embed_triton
)
