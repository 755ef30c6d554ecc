"""Euler integration of many streams' chunks as one ragged batch (reference behaviour, sections 10 and 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from ..config import FRAMES_PER_TOKEN
from ..models.flow_dit import FlowBatch, FlowDit, FlowWindow
from ..upload import upload
from .window_pool import WindowSlot

FILL_TIME = 999


@dataclass(frozen=True)
class FlowJob:
    """One chunk: all its tokens (the carried ones first), its first position, its noise and its window.

    ``num_kept``: leading rows that are not look-ahead. ``fill``: store the keys and values of the kept rows in the window.
    """

    tokens: Sequence[int]
    start: int
    noise: torch.Tensor
    slot: WindowSlot
    num_kept: int
    fill: bool

    @property
    def num_rows(self) -> int:
        return len(self.tokens) * FRAMES_PER_TOKEN


@lru_cache(maxsize=32)
def ode_schedule(num_steps: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Integer times and step widths of the Euler grid, in the reference's float32 arithmetic."""
    grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float32)
    times, widths, t = [], [], torch.zeros((), dtype=torch.float32)
    for target in grid[1:]:
        width = target - t
        times.append(int(1000 * t))
        widths.append(width.item())
        t = t + width
    return tuple(times), tuple(widths)


class Passes(Protocol):
    """How the passes of a solve run; the functions of this file, or captured graphs."""

    def integrate(self, dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], num_steps: int) -> torch.Tensor:
        """As :func:`integrate`."""

    def fill(self, dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], states: torch.Tensor) -> None:
        """As :func:`fill`."""


def solve(
    dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], num_steps: int, passes: Passes | None = None
) -> list[torch.Tensor]:
    """Integrate all jobs from their noise; returns the final normalised states [num_rows, num_mels] in the network's dtype.

    Then the windows of the jobs with ``fill`` take in the kept rows, by one more pass over them. ``passes`` replaces the
    plain loops (captured graphs do).
    """
    x = (passes.integrate if passes else integrate)(dit, window, jobs, num_steps)
    states = list(x.split([job.num_rows for job in jobs]))
    filled = [index for index, job in enumerate(jobs) if job.fill]
    if filled:
        kept = torch.cat([states[i][: jobs[i].num_kept] for i in filled])
        (passes.fill if passes else fill)(dit, window, [jobs[i] for i in filled], kept)
        for index in filled:
            jobs[index].slot.advance(jobs[index].num_kept)
    return states


def integrate(dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], num_steps: int) -> torch.Tensor:
    """All Euler steps: final states of all jobs, [rows, num_mels]."""
    batch = _batch(dit, jobs, [job.num_rows for job in jobs])
    x = upload([torch.cat([job.noise for job in jobs])], dit.device)[0].to(dit.dtype)
    times, widths = ode_schedule(num_steps)
    return dit.integrate(x, dit.time_table(times), widths, dit.condition(batch.token_ids), batch, window)


def fill(dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], states: torch.Tensor) -> None:
    """The pass at time 999 over the kept rows of all jobs, whose final states are ``states``."""
    batch = _batch(dit, jobs, [job.num_kept for job in jobs])
    rows, places = upload(fill_arrays(jobs), dit.device)
    dit.fill_window(states, dit.time_table((FILL_TIME,))[0], dit.condition(batch.token_ids), batch, window, rows, places)


def fill_arrays(jobs: Sequence[FlowJob]) -> list[np.ndarray]:
    """Which of the kept rows of all jobs go into their windows, and where; int64, equal lengths."""
    rows, places, first = [], [], 0
    for job in jobs:
        kept, place = job.slot.places(job.num_kept)
        rows.append(first + kept)
        places.append(place)
        first += job.num_kept
    return [np.concatenate(rows), np.concatenate(places)]


def _batch(dit: FlowDit, jobs: Sequence[FlowJob], num_rows: Sequence[int]) -> FlowBatch:
    """The first ``num_rows`` rows of every job, one job after the other."""
    arrays = upload(batch_arrays(jobs, num_rows), dit.device)
    return FlowBatch(*arrays, max_seqlen=max(num_rows), frames_per_token=FRAMES_PER_TOKEN)


def batch_arrays(jobs: Sequence[FlowJob], num_rows: Sequence[int]) -> list[np.ndarray]:
    """Arrays of a :class:`FlowBatch`, in its order."""
    tokens = [token for job, n in zip(jobs, num_rows, strict=True) for token in job.tokens[: n // FRAMES_PER_TOKEN]]
    positions = np.concatenate([np.arange(job.start, job.start + n) for job, n in zip(jobs, num_rows, strict=True)])
    bounds = np.cumsum([0, *num_rows]).astype(np.int32)
    slots = np.array([job.slot.index for job in jobs])
    return [np.array(tokens), positions, bounds, slots, np.array([job.slot.num_rows for job in jobs], np.int32)]
