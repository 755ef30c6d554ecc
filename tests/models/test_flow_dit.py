"""The DiT against its goldens, and the claims behind its shortcuts: per-token conditioning, ragged batches, windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from speech_models import load_speech

from antiphon.models.flow_dit import FlowBatch, FlowDit, FlowWindow, time_features

WINDOW = 40


@pytest.fixture
def dit(fixtures) -> FlowDit:
    return load_speech(fixtures / "tiny")[0]


@pytest.fixture
def arrays(fixtures):
    return np.load(fixtures / "golden" / "dit.npz")


def one_stream(condition, start: int, *, slot: int = 0, cached: int = 0, frames_per_token: int = 1) -> FlowBatch:
    rows = len(condition) * frames_per_token
    return FlowBatch(
        token_ids=torch.as_tensor(np.asarray(condition)).long(),
        positions=torch.arange(start, start + rows),
        cu_seqlens=torch.tensor([0, rows], dtype=torch.int32),
        slots=torch.tensor([slot]),
        cache_lens=torch.tensor([cached], dtype=torch.int32),
        max_seqlen=rows,
        frames_per_token=frames_per_token,
    )


def joined(batches: list[FlowBatch]) -> FlowBatch:
    rows = [len(b.positions) for b in batches]
    return FlowBatch(
        token_ids=torch.cat([b.token_ids for b in batches]),
        positions=torch.cat([b.positions for b in batches]),
        cu_seqlens=torch.tensor([0, *np.cumsum(rows)], dtype=torch.int32),
        slots=torch.cat([b.slots for b in batches]),
        cache_lens=torch.cat([b.cache_lens for b in batches]),
        max_seqlen=max(rows),
        frames_per_token=batches[0].frames_per_token,
    )


def empty_window(dit: FlowDit, num_slots: int = 1) -> FlowWindow:
    window = FlowWindow.empty(dit.config, num_slots, WINDOW, dit.dtype, dit.device)
    window.keys.fill_(torch.nan)
    window.values.fill_(torch.nan)
    return window


def velocity(dit: FlowDit, x: torch.Tensor, time: int, batch: FlowBatch, window: FlowWindow) -> torch.Tensor:
    return dit.velocity(x, dit.time_table((time,))[0], dit.condition(batch.token_ids), batch, window)


def fill(dit: FlowDit, x: torch.Tensor, time: int, batch: FlowBatch, window: FlowWindow, rows, places) -> None:
    dit.fill_window(x, dit.time_table((time,))[0], dit.condition(batch.token_ids), batch, window, rows, places)


def test_time_embedding_golden(dit, arrays, within_budget):
    times = arrays["time_ints"].tolist()
    sinusoid = time_features(torch.tensor(times).float()).numpy()
    within_budget("time sinusoid", np.abs(sinusoid - arrays["time_sinusoid"]).max(), 1e-4)
    within_budget("time embedding", np.abs(dit.time_table(times).numpy() - arrays["time_embedding"]).max(), 1e-4)


def test_rope_golden(dit, arrays, within_budget):
    positions = arrays["rope_positions"]
    within_budget("cos", np.abs(dit.cos[positions].numpy() - arrays["rope_cos"]).max(), 1e-6)
    within_budget("sin", np.abs(dit.sin[positions].numpy() - arrays["rope_sin"]).max(), 1e-6)


@pytest.mark.parametrize("case", range(5))
def test_pass_golden(dit, arrays, case, within_budget):
    a = {key.split(".")[1]: arrays[key] for key in arrays.files if key.startswith(f"case{case}.")}
    window, cached = empty_window(dit), 0
    if "prev_x" in a:
        cached = len(a["prev_x"])
        rows = torch.arange(cached)
        before = one_stream(a["prev_condition"], int(a["prev_start"]))
        fill(dit, torch.from_numpy(a["prev_x"]), int(a["prev_t"]), before, window, rows, rows)
    batch = one_stream(a["condition"], int(a["start"]), cached=cached)
    out = velocity(dit, torch.from_numpy(a["x"]), int(a["t"]), batch, window)
    within_budget(f"case {case}", np.abs(out.numpy() - a["out"]).max(), 1e-4)


def test_conditioning_per_token_equals_conditioning_per_frame(dit):
    tokens, x = [3, 500, 0, 3, 77], torch.randn(20, dit.config.num_mels)
    per_token = velocity(dit, x, 482, one_stream(tokens, 9, frames_per_token=4), empty_window(dit))
    per_frame = velocity(dit, x, 482, one_stream(np.repeat(tokens, 4), 9), empty_window(dit))
    torch.testing.assert_close(per_token, per_frame, rtol=0, atol=1e-5)


def test_ragged_batch_equals_each_stream_alone(dit):
    torch.manual_seed(0)
    window = empty_window(dit, num_slots=4)
    for slot, cached in ((2, 12), (0, 8)):
        rows = torch.arange(cached)
        before = one_stream(range(cached // 4), 0, slot=slot, frames_per_token=4)
        fill(dit, torch.randn(cached, dit.config.num_mels), 999, before, window, rows, slot * WINDOW + rows)
    streams = [
        one_stream(range(10, 17), 12, slot=2, cached=12, frames_per_token=4),
        one_stream([5], 0, slot=3, frames_per_token=4),
        one_stream(range(40, 43), 8, slot=0, cached=8, frames_per_token=4),
    ]
    states = [torch.randn(len(s.positions), dit.config.num_mels) for s in streams]
    together = velocity(dit, torch.cat(states), 206, joined(streams), window)
    alone = torch.cat([velocity(dit, x, 206, s, window) for x, s in zip(states, streams, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_window_is_a_ring_whose_order_does_not_matter(dit):
    torch.manual_seed(1)
    x, before = torch.randn(12, dit.config.num_mels), one_stream(range(3), 0, frames_per_token=4)
    batch = one_stream([9, 8], 12, cached=12, frames_per_token=4)
    state, outs = torch.randn(8, dit.config.num_mels), []
    for places in (torch.arange(12), (torch.arange(12) + 5) % 12):
        window = empty_window(dit)
        fill(dit, x, 999, before, window, torch.arange(12), places)
        outs.append(velocity(dit, state, 0, batch, window))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-5)


def test_rows_beyond_the_valid_ones_and_other_slots_are_never_read(dit):
    window = empty_window(dit, num_slots=2)
    rows = torch.arange(8)
    fill(dit, torch.randn(8, dit.config.num_mels), 999, one_stream([1, 2], 0, frames_per_token=4), window, rows, rows)
    out = velocity(
        dit, torch.randn(4, dit.config.num_mels), 0, one_stream([3], 8, cached=8, frames_per_token=4), window
    )
    assert torch.isfinite(out).all()
    assert torch.isnan(window.keys[:, 1]).all() and torch.isnan(window.keys[:, 0, 8:]).all()


def test_filling_reads_the_window_as_it_was(dit):
    """The pass over rows that replace the whole window sees the old rows in every layer."""
    torch.manual_seed(2)
    rows, x0, x1 = torch.arange(8), *torch.randn(2, 8, dit.config.num_mels)
    first, second = (one_stream(t, s, frames_per_token=4) for t, s in (([1, 2], 0), ([3, 4], 8)))
    second = dataclasses.replace(second, cache_lens=torch.tensor([8], dtype=torch.int32))
    apart, over = empty_window(dit), empty_window(dit)
    for window, places in ((apart, rows + 8), (over, rows)):
        fill(dit, x0, 999, first, window, rows, rows)
        fill(dit, x1, 999, second, window, rows, places)
    torch.testing.assert_close(over.keys[:, :, :8], apart.keys[:, :, 8:16], rtol=0, atol=0)


def test_time_table_is_computed_once_per_grid(dit):
    assert dit.time_table((0, 34)) is dit.time_table([0, 34])
