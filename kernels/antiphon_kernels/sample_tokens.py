"""One token per row from its logits: penalty window, temperature, top-k, counter-based draw.

    penalty:  only if p > 1 and history_len > window: every id among the last `window` entries once,
              l < 0 -> l * p, else l / p, in the logits' own precision
    greedy:   temperature <= 1e-6 -> arg max, lowest id on ties
    draw:     arg max over the top-k (lowest ids on ties; 0 = all) of  l / temperature + gumbel(seed, step, stream, id),
              which is a draw from softmax(l / temperature) over them; step = history_len

Source: reference behaviour, section 9 (the stable form of its sampler; the random numbers are ours). Shapes: logits
[R, V]; slots int64 [R]: the request of each row; per-slot arrays [num_slots]: history int32 [num_slots, capacity],
history_len int64, temperature and penalty float32, top_k and window and seeds int64; stream 0 = text, 1 = audio;
result int64 [R]. A row's result depends on the row and its slot only.
"""

from __future__ import annotations

import torch

from .operator import Operator
from .philox import gumbel

GREEDY_TEMPERATURE = 1e-6


def penalise(logits: torch.Tensor, recent: torch.Tensor, penalty: float) -> torch.Tensor:
    """Penalise each id of ``recent`` [n] once: logits [V] → [V] in the same dtype."""
    ids = recent.long().unique()
    values = logits[ids]
    out = logits.clone()
    out[ids] = torch.where(values < 0, values * penalty, values / penalty)
    return out


def top_k_ids(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Ids of the k largest of logits [V], lowest ids on ties, ascending; k = 0 or k >= V means all."""
    if k <= 0 or k >= logits.shape[0]:
        return torch.arange(logits.shape[0], device=logits.device)
    threshold = logits.topk(k).values[-1]
    above = (logits > threshold).nonzero()[:, 0]
    level = (logits == threshold).nonzero()[: k - above.shape[0], 0]
    return torch.cat((above, level)).sort().values


def draw(
    logits: torch.Tensor, temperature: float, k: int, seed: torch.Tensor, step: torch.Tensor, stream: int
) -> torch.Tensor:
    """Gumbel-max draw from one row of float32 logits [V]."""
    ids = top_k_ids(logits, k)
    noise = gumbel(ids[None], step.view(1, 1), seed.view(1, 1), stream)[0]
    return ids[torch.argmax(logits[ids] / temperature + noise)]


def reference(
    logits: torch.Tensor,
    history: torch.Tensor,
    history_len: torch.Tensor,
    slots: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    penalty: torch.Tensor,
    window: torch.Tensor,
    seeds: torch.Tensor,
    stream: int,
) -> torch.Tensor:
    """Row by row."""
    out = slots.new_empty(slots.shape[0])
    for row, slot in enumerate(slots.tolist()):
        scores, length, reach = logits[row], int(history_len[slot]), int(window[slot])
        if penalty[slot] > 1 and length > reach:
            scores = penalise(scores, history[slot, length - reach : length], float(penalty[slot]))
        scores = scores.float()
        if temperature[slot] <= GREEDY_TEMPERATURE:
            out[row] = torch.argmax(scores)
        else:
            out[row] = draw(scores, float(temperature[slot]), int(top_k[slot]), seeds[slot], history_len[slot], stream)
    return out


def fake(logits, history, history_len, slots, temperature, top_k, penalty, window, seeds, stream):
    return torch.empty_like(slots)


sample_tokens = Operator(
    "sample_tokens",
    "(Tensor logits, Tensor history, Tensor history_len, Tensor slots, Tensor temperature, Tensor top_k, "
    "Tensor penalty, Tensor window, Tensor seeds, int stream) -> Tensor",
    reference=reference,
    fake=fake,
)
