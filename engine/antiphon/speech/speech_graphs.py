"""The output side as graphs: all Euler steps of a shape bucket in one replay, the vocoder in one replay per shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from antiphon_kernels import euler_step

from ..config import FRAMES_PER_TOKEN, VocoderConfig
from ..execution.graphs import Graphs
from ..execution.static_inputs import StaticInputs
from ..models.bigvgan import BigVgan
from ..models.flow_dit import FlowBatch, FlowDit, FlowWindow
from .flow_solver import FlowJob, batch_arrays, integrate_eagerly, ode_schedule

FLOW_GRAPHS = 16
VOCODER_GRAPHS = 48
MAX_ROWS = 3072
Built = TypeVar("Built")


class GraphCache(Generic[Built]):
    """Graphs by shape, least recently used out first. A shape is captured when it is seen for the second time."""

    def __init__(self, limit: int):
        self.limit = limit
        self._built: OrderedDict[Hashable, Built | None] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Built]) -> Built | None:
        """The graph of ``key``; None at first sight."""
        if key not in self._built:
            self._built[key] = None
        elif self._built[key] is None:
            self._built[key] = build()
        self._built.move_to_end(key)
        while len(self._built) > self.limit:
            self._built.popitem(last=False)
        return self._built[key]


def row_bucket(rows: int) -> int:
    """Rows of the graph that takes ``rows``: at most an eighth more, from 384 on."""
    step = 48
    while rows > 8 * step:
        step *= 2
    return -(-rows // step) * step


class FlowGraphs:
    """Integrates as ``flow_solver.integrate_eagerly`` does. Rows beyond the streams' own form an idle stream without a window."""

    def __init__(self, dit: FlowDit, window: FlowWindow, graphs: Graphs):
        self.dit, self.window = dit, window
        self._graphs = graphs
        self._cache: GraphCache[_FlowGraph] = GraphCache(FLOW_GRAPHS)

    def integrate(self, dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], num_steps: int) -> Tensor:
        """Final states of all jobs, [rows, num_mels]; falls back to the plain loop where no graph is worth it."""
        rows = sum(job.num_rows for job in jobs)
        if rows > MAX_ROWS:
            return integrate_eagerly(dit, window, jobs, num_steps)
        key = (row_bucket(rows), 1 << (len(jobs) - 1).bit_length(), num_steps)
        graph = self._cache.get(key, lambda: _FlowGraph(self, *key, self._graphs))
        return integrate_eagerly(dit, window, jobs, num_steps) if graph is None else graph.run(jobs, rows)


class _FlowGraph:
    """One bucket: rows, streams and Euler steps."""

    def __init__(self, owner: FlowGraphs, rows: int, streams: int, num_steps: int, graphs: Graphs):
        self.rows, self.streams, self.num_steps = rows, streams, num_steps
        self._owner = owner
        dit = owner.dit
        self.inputs = StaticInputs(
            {
                "token_ids": ((rows // FRAMES_PER_TOKEN,), torch.int64),
                "positions": ((rows,), torch.int64),
                "cu_seqlens": ((streams + 2,), torch.int32),
                "slots": ((streams + 1,), torch.int64),
                "cache_lens": ((streams + 1,), torch.int32),
                "noise": ((rows, dit.config.num_mels), torch.float32),
            },
            dit.device,
        )
        self.inputs["cu_seqlens"][-1] = rows
        self.result = torch.zeros(rows, dit.config.num_mels, dtype=dit.dtype, device=dit.device)
        self._times = dit.time_table(ode_schedule(num_steps)[0])
        self.captured = graphs.capture(self._run)

    def run(self, jobs: Sequence[FlowJob], rows: int) -> Tensor:
        """Fill the inputs, replay, copy the result out."""
        self.inputs.load(self._arrays(jobs, rows))
        self.captured.replay()
        return self.result[:rows].clone()

    def _arrays(self, jobs: Sequence[FlowJob], rows: int) -> dict[str, np.ndarray | Tensor]:
        names = ("token_ids", "positions", "cu_seqlens", "slots", "cache_lens")
        own = dict(zip(names, batch_arrays(jobs, [job.num_rows for job in jobs]), strict=True))
        full = {name: np.zeros(self.inputs[name].shape, array.dtype) for name, array in own.items()}
        for name, array in own.items():
            full[name][: len(array)] = array
        full["positions"][rows:] = np.arange(self.rows - rows)
        full["cu_seqlens"][len(jobs) + 1 : -1] = rows
        full["cu_seqlens"][-1] = self.rows
        noise = torch.zeros(self.rows, self._owner.dit.config.num_mels)
        torch.cat([job.noise for job in jobs], out=noise[:rows])
        return {**full, "noise": noise}

    def _run(self) -> None:
        dit, inputs = self._owner.dit, self.inputs
        batch = FlowBatch(
            inputs["token_ids"],
            inputs["positions"],
            inputs["cu_seqlens"],
            inputs["slots"],
            inputs["cache_lens"],
            max_seqlen=self.rows,
            frames_per_token=FRAMES_PER_TOKEN,
        )
        condition = dit.condition(batch.token_ids)
        x = inputs["noise"].to(dit.dtype)
        for time, width in zip(self._times, ode_schedule(self.num_steps)[1], strict=True):
            x = euler_step(x, dit.velocity(x, time, condition, batch, self._owner.window), width)
        self.result.copy_(x)


class GraphedVocoder(BigVgan):
    """BigVGAN whose passes are replays; batches are filled up with silent items to a power of two."""

    def __init__(self, config: VocoderConfig, weights: dict[str, Tensor], graphs: Graphs):
        super().__init__(config, weights)
        self._graphs = graphs
        self._cache: GraphCache[_VocoderGraph] = GraphCache(VOCODER_GRAPHS)

    def _generate(self, mel: Tensor, lengths: Tensor | None) -> Tensor:
        items = 1 << (mel.shape[0] - 1).bit_length()
        key = (items, mel.shape[1], lengths is not None)
        graph = self._cache.get(key, lambda: _VocoderGraph(self, *key))
        return super()._generate(mel, lengths) if graph is None else graph.run(mel, lengths)

    def generate_eagerly(self, mel: Tensor, lengths: Tensor | None) -> Tensor:
        """What a graph captures."""
        return super()._generate(mel, lengths)


class _VocoderGraph:
    """One shape: items, frames, and whether items end at lengths of their own."""

    def __init__(self, owner: GraphedVocoder, items: int, frames: int, padded: bool):
        self.mel = torch.zeros(items, frames, owner.config.num_mels, dtype=owner.dtype, device=owner.device)
        self.lengths = torch.full((items,), frames, dtype=torch.int64, device=owner.device) if padded else None
        self.result = torch.zeros(items, frames * owner.config.hop, device=owner.device)
        self._owner = owner
        self.captured = owner._graphs.capture(self._run)

    def run(self, mel: Tensor, lengths: Tensor | None) -> Tensor:
        """Copies on the device, replay, copy out."""
        self.mel[: mel.shape[0]].copy_(mel)
        if lengths is not None:
            self.lengths[: lengths.shape[0]].copy_(lengths)
        self.captured.replay()
        return self.result[: mel.shape[0]].clone()

    def _run(self) -> None:
        self.result.copy_(self._owner.generate_eagerly(self.mel, self.lengths))
