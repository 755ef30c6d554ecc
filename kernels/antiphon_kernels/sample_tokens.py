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
from .philox import gumbel, gumbel_triton
from .triton_support import available, cdiv, check, jit, launch, next_power_of_2, row_contiguous, supported_dtype, tl

GREEDY_TEMPERATURE = 1e-6
REFERENCE_SPAN = 128
"""Logits of which the reference looks at the largest first: a pass over the maxima leaves few candidates for the top-k."""


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
    ids = _candidates(logits, k)
    values = logits[ids]
    threshold = values.topk(k).values[-1]
    above = ids[values > threshold]
    level = ids[values == threshold][: k - above.shape[0]]
    return torch.cat((above, level)).sort().values


def _candidates(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Ids, ascending, among them the k largest of logits [V] and all their ties: whatever is not below the k-th best span."""
    count = logits.shape[0] // REFERENCE_SPAN
    if count < k:
        return torch.arange(logits.shape[0], device=logits.device)
    best = logits[: count * REFERENCE_SPAN].view(count, REFERENCE_SPAN).amax(1)
    return (logits >= best.topk(k).values[-1]).nonzero()[:, 0]


def draw(
    ids: torch.Tensor, scores: torch.Tensor, steps: torch.Tensor, seeds: torch.Tensor, stream: int
) -> torch.Tensor:
    """Gumbel-max draw per row: ids int64 [R, n] ascending, their logits / temperature float32 [R, n], steps and seeds [R]."""
    noise = gumbel(ids, steps[:, None], seeds[:, None], stream)
    return ids.gather(1, torch.argmax(scores + noise, 1, keepdim=True))[:, 0]


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
    """Row by row, but for the noise: rows with equally many candidates draw together."""
    out = slots.new_empty(slots.shape[0])
    columns = [column[slots].tolist() for column in (history_len, window, penalty, temperature, top_k)]
    candidates: dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
    for row, (slot, length, reach, factor, heat, k) in enumerate(zip(slots.tolist(), *columns, strict=True)):
        scores = logits[row]
        if factor > 1 and length > reach:
            scores = penalise(scores, history[slot, length - reach : length], factor)
        scores = torch.where(scores.isnan(), float("-inf"), scores).float()
        if heat <= GREEDY_TEMPERATURE:
            out[row] = torch.argmax(scores)
        else:
            ids = top_k_ids(scores, k)
            candidates.setdefault(len(ids), []).append((row, ids, scores[ids] / heat))
    for group in candidates.values():
        place, ids, scores = zip(*group, strict=True)
        rows = torch.tensor(place, device=slots.device)
        chosen = slots[rows]
        out[rows] = draw(torch.stack(ids), torch.stack(scores), history_len[chosen], seeds[chosen], stream)
    return out


CHUNK = 4096
"""Logits of one program of the first launch."""
SPAN = 2048
"""Logits that the search over a whole row holds at once."""
FEW = 64
"""Up to this top-k every chunk hands on its own best; above it, one program per row searches all logits."""
_SPARE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits that every value of the dtype has zero once it is widened to float32: the search leaves them out."""


@jit
def sort_key(x, LOW: tl.constexpr):
    """uint32 in the order of the float32 values x, both zeros equal, without the LOW low bits."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000) >> LOW


@jit
def load_scores(logits, ids, inside, first, SPAN: tl.constexpr, history, length, reach, penalty):
    """Logits [first, first + SPAN) in float32 after the penalty of the last ``reach`` ids; -inf where not inside."""
    x = tl.load(logits + ids, inside, float("-inf"))
    if (penalty > 1.0) & (length > reach):
        recent = ids < 0
        for i in range(length - reach, length):
            token = tl.load(history + i)
            if (token >= first) & (token < first + SPAN):
                recent = recent | (ids == token)
        wide = x.to(tl.float32)
        changed = tl.where(wide < 0, wide * penalty, tl.div_rn(wide, penalty)).to(x.dtype)
        x = tl.where(recent, changed, x)
    scores = x.to(tl.float32)
    return tl.where(scores >= float("-inf"), scores, float("-inf"))


@jit
def best_of(scores, ids):
    """Largest score and, among its ids, the lowest."""
    best = tl.max(scores, 0)
    return best, tl.min(tl.where(scores == best, ids, 0x7FFFFFFF), 0)


@jit
def keep_largest(keys, k, BITS: tl.constexpr):
    """Mask of the k largest keys, first ones on ties: their threshold is built bit by bit, nothing is sorted."""
    threshold = tl.max(keys, 0) * 0
    for i in range(BITS):
        candidate = threshold | (tl.full((), 1, tl.uint32) << (BITS - 1 - i))
        threshold = tl.where(tl.sum((keys >= candidate).to(tl.int32), 0) >= k, candidate, threshold)
    above = keys > threshold
    level = (keys == threshold).to(tl.int32)
    room = k - tl.sum(above.to(tl.int32), 0)
    return above | ((level > 0) & (tl.cumsum(level, 0) <= room))


@jit(varying=("stream",))
def chunk_kernel(
    logits,
    history,
    history_len,
    slots,
    temperature,
    top_k,
    penalty,
    window,
    seeds,
    values,
    indices,
    logits_stride,
    history_stride,
    parameter_stride,
    stream,
    vocabulary: tl.constexpr,
    num_chunks: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,
    LOW: tl.constexpr,
    GREEDY: tl.constexpr,
):
    """One program: CHUNK logits of one row → its best (greedy, or no top-k) or its k best, ids ascending, k ≤ FEW."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    k = tl.load(top_k + slot * parameter_stride)
    heat = tl.load(temperature + slot * parameter_stride)
    unlimited = (k <= 0) | (k >= vocabulary)
    if (heat > GREEDY) & (unlimited == 0) & (k > FEW):
        return
    first = chunk * CHUNK
    ids = first + tl.arange(0, CHUNK)
    inside = ids < vocabulary
    step = tl.load(history_len + slot)
    scores = load_scores(
        logits + row * logits_stride, ids, inside, first, CHUNK, history + slot * history_stride, step,
        tl.load(window + slot * parameter_stride), tl.load(penalty + slot * parameter_stride),
    )  # fmt: skip
    part = (row * num_chunks + chunk) * FEW
    if (heat <= GREEDY) | unlimited:
        if heat > GREEDY:
            scores = tl.div_rn(scores, heat) + gumbel_triton(ids, step, tl.load(seeds + slot), stream)
        best, index = best_of(scores, ids)
        tl.store(values + part, best)
        tl.store(indices + part, index)
    else:
        count = tl.minimum(k, tl.minimum(vocabulary - first, CHUNK)).to(tl.int32)
        keys = tl.where(inside, sort_key(scores, LOW), 0)
        kept = keep_largest(keys, count, 32 - LOW)
        place = part + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(values + place, scores, kept)
        tl.store(indices + place, ids, kept)
        rest = tl.arange(0, FEW)
        tl.store(values + part + rest, float("-inf"), rest >= count)
        tl.store(indices + part + rest, 0x7FFFFFFF, rest >= count)


@jit
def draw_from_all(
    source, past, step, reach, strength, k, heat, seed, stream, vocabulary: tl.constexpr, SPAN: tl.constexpr,
    LOW: tl.constexpr,
):  # fmt: skip
    """The id drawn from the k best of all logits of a row: their threshold bit by bit, then one pass with noise."""
    lanes = tl.arange(0, SPAN)
    threshold = tl.full((), 0, tl.uint32)
    above = tl.full((), 0, tl.int32)
    for i in range(32 - LOW):
        candidate = threshold | (tl.full((), 1, tl.uint32) << (31 - LOW - i))
        count = tl.full((), 0, tl.int32)
        for first in range(0, vocabulary, SPAN):
            inside = first + lanes < vocabulary
            scores = load_scores(source, first + lanes, inside, first, SPAN, past, step, reach, strength)
            count += tl.sum((inside & (sort_key(scores, LOW) >= candidate)).to(tl.int32), 0)
        threshold = tl.where(count >= k, candidate, threshold)
        above = tl.where(count >= k, above, count)
    room = k.to(tl.int32) - above
    best = tl.full((), float("-inf"), tl.float32)
    index = tl.full((), 0x7FFFFFFF, tl.int32)
    for first in range(0, vocabulary, SPAN):
        ids = first + lanes
        inside = ids < vocabulary
        scores = load_scores(source, ids, inside, first, SPAN, past, step, reach, strength)
        keys = tl.where(inside, sort_key(scores, LOW), 0)
        level = (inside & (keys == threshold)).to(tl.int32)
        kept = (keys > threshold) | ((level > 0) & (tl.cumsum(level, 0) <= room))
        room -= tl.sum(level, 0)
        noisy = tl.div_rn(scores, heat) + gumbel_triton(ids, step, seed, stream)
        new, place = best_of(tl.where(kept, noisy, float("-inf")), ids)
        index = tl.where(new > best, place, index)
        best = tl.maximum(new, best)
    return index


@jit(varying=("stream",))
def draw_kernel(
    logits,
    history,
    history_len,
    slots,
    temperature,
    top_k,
    penalty,
    window,
    seeds,
    values,
    indices,
    out,
    logits_stride,
    history_stride,
    parameter_stride,
    stream,
    vocabulary: tl.constexpr,
    num_chunks: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPAN: tl.constexpr,
    FEW: tl.constexpr,
    LOW: tl.constexpr,
    GREEDY: tl.constexpr,
):
    """One program: one row, from what :func:`chunk_kernel` handed on, or, for a top-k above FEW, from all its logits."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    k = tl.load(top_k + slot * parameter_stride)
    heat = tl.load(temperature + slot * parameter_stride)
    step, seed = tl.load(history_len + slot), tl.load(seeds + slot)
    part = row * num_chunks * FEW
    if (heat <= GREEDY) | (k <= 0) | (k >= vocabulary):
        chunk = tl.arange(0, CHUNKS)
        scores = tl.load(values + part + chunk * FEW, chunk < num_chunks, float("-inf"))
        _best, index = best_of(scores, tl.load(indices + part + chunk * FEW, chunk < num_chunks, 0x7FFFFFFF))
        tl.store(out + row, index.to(tl.int64))
    elif k <= FEW:
        place = tl.arange(0, CHUNKS * FEW)
        held = place < num_chunks * FEW
        scores = tl.load(values + part + place, held, float("-inf"))
        ids = tl.load(indices + part + place, held, 0x7FFFFFFF)
        kept = keep_largest(tl.where(held, sort_key(scores, LOW), 0), k.to(tl.int32), 32 - LOW)
        noisy = tl.div_rn(scores, heat) + gumbel_triton(ids, step, seed, stream)
        _best, index = best_of(tl.where(kept, noisy, float("-inf")), tl.where(kept, ids, 0x7FFFFFFF))
        tl.store(out + row, index.to(tl.int64))
    else:
        reach, strength = tl.load(window + slot * parameter_stride), tl.load(penalty + slot * parameter_stride)
        source, past = logits + row * logits_stride, history + slot * history_stride
        index = draw_from_all(source, past, step, reach, strength, k, heat, seed, stream, vocabulary, SPAN, LOW)
        tl.store(out + row, index.to(tl.int64))


def sample_tokens_triton(
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
    """Two launches: [R, V / CHUNK] programs, then R. The four sampling parameters may be strided, all alike."""
    parameters = (temperature, top_k, penalty, window)
    check(len({p.stride(0) for p in parameters}) == 1, "temperature, top_k, penalty, window: one stride")
    check(history_len.is_contiguous() and seeds.is_contiguous(), "history_len, seeds: contiguous")
    check(history.stride(1) == 1, "history: contiguous rows")
    logits, slots = row_contiguous(logits), slots.contiguous()
    num_rows, vocabulary = logits.shape
    num_chunks = cdiv(vocabulary, CHUNK)
    values = torch.empty(num_rows * num_chunks * FEW, dtype=torch.float32, device=logits.device)
    indices = torch.empty(num_rows * num_chunks * FEW, dtype=torch.int32, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    inputs = (logits, history, history_len, slots, *parameters, seeds, values, indices)
    strides = (logits.stride(0), history.stride(0), temperature.stride(0), stream)
    fixed = {
        "vocabulary": vocabulary, "num_chunks": num_chunks, "FEW": FEW,
        "LOW": _SPARE_BITS[logits.dtype], "GREEDY": GREEDY_TEMPERATURE,
    }  # fmt: skip
    launch(chunk_kernel, (num_rows, num_chunks), *inputs, *strides, num_warps=8, CHUNK=CHUNK, **fixed)
    chunks = next_power_of_2(num_chunks)
    launch(draw_kernel, (num_rows,), *inputs, out, *strides, num_warps=16, CHUNKS=chunks, SPAN=SPAN, **fixed)
    return out


def sample_tokens_supported(
    logits, history, history_len, slots, temperature, top_k, penalty, window, seeds, stream
) -> bool:
    """Float logits, and what the launcher checks."""
    strides = {p.stride(0) for p in (temperature, top_k, penalty, window)}
    return (
        available and supported_dtype(logits) and len(strides) == 1 and history.stride(1) == 1 and seeds.is_contiguous()
    )


def fake(logits, history, history_len, slots, temperature, top_k, penalty, window, seeds, stream):
    return torch.empty_like(slots)


sample_tokens = Operator(
    "sample_tokens",
    "(Tensor logits, Tensor history, Tensor history_len, Tensor slots, Tensor temperature, Tensor top_k, "
    "Tensor penalty, Tensor window, Tensor seeds, int stream) -> Tensor",
    reference=reference,
    fake=fake,
)
sample_tokens.backend("triton", devices=("cuda",), supports=sample_tokens_supported)(sample_tokens_triton)
