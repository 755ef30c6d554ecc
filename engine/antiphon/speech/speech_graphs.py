"""The output side as graphs: a bucket's Euler steps in one replay, its window's fill in one, the vocoder in one per shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from antiphon_kernels import euler_step

from ..config import FRAMES_PER_TOKEN, VocoderConfig
from ..execution.graphs import Graph, Graphs
from ..execution.static_inputs import StaticInputs
from ..models.bigvgan import BigVgan
from ..models.flow_dit import FlowBatch, FlowDit, FlowWindow
from . import flow_solver
from .flow_solver import FILL_TIME, FlowJob, batch_arrays, fill_arrays, ode_schedule

FLOW_GRAPHS = 24
VOCODER_GRAPHS = 48
MAX_ROWS = 3072
Built = TypeVar("Built")


class GraphCache(Generic[Built]):
    """Graphs by shape, least recently used out first. A shape is captured when it is seen for the second time."""

    def __init__(self, limit: int):
        self.limit = limit
        self._built: OrderedDict[Hashable, Built | None] = OrderedDict()

    def put(self, key: Hashable, graph: Built) -> None:
        """A graph that was captured before its shape was seen."""
        self._built[key] = graph

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
    """Rows of the graph that takes ``rows``: at most an eighth more from 192 on, and no more for the steady chunk of 168."""
    step = 24
    while rows > 8 * step:
        step *= 2
    return -(-rows // step) * step


def stream_bucket(streams: int) -> int:
    """Streams of the graph that takes ``streams``: a power of two."""
    return 1 << (streams - 1).bit_length()


class FlowGraphs:
    """Runs the passes of ``flow_solver`` as replays: all Euler steps in one, the pass that fills the windows in one.

    Rows beyond the streams' own form an idle stream, which reads no window and writes to the spare place.
    """

    def __init__(self, dit: FlowDit, window: FlowWindow, graphs: Graphs):
        self.dit, self.window = dit, window
        self._graphs = graphs
        self._solves: GraphCache[_SolveGraph] = GraphCache(FLOW_GRAPHS)
        self._fills: GraphCache[_FillGraph] = GraphCache(FLOW_GRAPHS)

    def integrate(self, dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], num_steps: int) -> Tensor:
        """Final states of all jobs, [rows, num_mels]; falls back to the plain loop where no graph is worth it."""
        rows = sum(job.num_rows for job in jobs)
        key = (row_bucket(rows), stream_bucket(len(jobs)), num_steps)
        graph = self._solves.get(key, lambda: _SolveGraph(self, *key)) if rows <= MAX_ROWS else None
        return flow_solver.integrate(dit, window, jobs, num_steps) if graph is None else graph.run(jobs)

    def fill(self, dit: FlowDit, window: FlowWindow, jobs: Sequence[FlowJob], states: Tensor) -> None:
        """The windows take in the kept rows; falls back as :meth:`integrate` does."""
        rows = states.shape[0]
        key = (row_bucket(rows), stream_bucket(len(jobs)))
        graph = self._fills.get(key, lambda: _FillGraph(self, *key)) if rows <= MAX_ROWS else None
        if graph is None:
            flow_solver.fill(dit, window, jobs, states)
        else:
            graph.run(jobs, states)

    def prepare(self, rows: int, kept: int, streams: int, num_steps: int) -> None:
        """Capture what solves of ``streams`` chunks with ``rows`` rows in all, ``kept`` of them no look-ahead, will replay."""
        streams = stream_bucket(streams)
        solve, fill = (row_bucket(rows), streams, num_steps), (row_bucket(kept), streams)
        self._solves.put(solve, _SolveGraph(self, *solve))
        self._fills.put(fill, _FillGraph(self, *fill))

    def capture(self, work: Callable[[], None]) -> Graph:
        """A graph in the pool of the others."""
        return self._graphs.capture(work)


class _FlowGraph:
    """One bucket of rows and streams with its fixed inputs; ``extra`` inputs besides those of a :class:`FlowBatch`."""

    def __init__(self, owner: FlowGraphs, rows: int, streams: int, **extra: tuple[tuple[int, ...], torch.dtype]):
        self.rows, self.streams, self.owner = rows, streams, owner
        self.inputs = StaticInputs(
            {
                "token_ids": ((rows // FRAMES_PER_TOKEN,), torch.int64),
                "positions": ((rows,), torch.int64),
                "cu_seqlens": ((streams + 2,), torch.int32),
                "slots": ((streams + 1,), torch.int64),
                "cache_lens": ((streams + 1,), torch.int32),
                **extra,
            },
            owner.dit.device,
        )
        self.inputs["cu_seqlens"][-1] = rows

    def batch_arrays(self, jobs: Sequence[FlowJob], num_rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The first ``num_rows`` rows of the jobs, and the idle stream behind them."""
        names = ("token_ids", "positions", "cu_seqlens", "slots", "cache_lens")
        own = dict(zip(names, batch_arrays(jobs, num_rows), strict=True))
        full = {name: np.zeros(self.inputs[name].shape, array.dtype) for name, array in own.items()}
        for name, array in own.items():
            full[name][: len(array)] = array
        rows = sum(num_rows)
        full["positions"][rows:] = np.arange(self.rows - rows)
        full["cu_seqlens"][len(jobs) + 1 : -1] = rows
        full["cu_seqlens"][-1] = self.rows
        return full

    def batch(self) -> FlowBatch:
        """The inputs as the network takes them."""
        inputs = self.inputs
        return FlowBatch(
            inputs["token_ids"],
            inputs["positions"],
            inputs["cu_seqlens"],
            inputs["slots"],
            inputs["cache_lens"],
            max_seqlen=self.rows,
            frames_per_token=FRAMES_PER_TOKEN,
        )


class _SolveGraph(_FlowGraph):
    """All Euler steps of a bucket."""

    def __init__(self, owner: FlowGraphs, rows: int, streams: int, num_steps: int):
        dit = owner.dit
        shape = (rows, dit.config.num_mels)
        super().__init__(owner, rows, streams, noise=(shape, torch.float32))
        self.result = torch.zeros(shape, dtype=dit.dtype, device=dit.device)
        self._times, self._widths = dit.time_table(ode_schedule(num_steps)[0]), ode_schedule(num_steps)[1]
        self.captured = owner.capture(self.work)

    def run(self, jobs: Sequence[FlowJob]) -> Tensor:
        """Fill the inputs, replay, copy the result out."""
        noise = torch.zeros(self.inputs["noise"].shape)
        num_rows = [job.num_rows for job in jobs]
        torch.cat([job.noise for job in jobs], out=noise[: sum(num_rows)])
        self.inputs.load({**self.batch_arrays(jobs, num_rows), "noise": noise})
        self.captured.replay()
        return self.result[: sum(num_rows)].clone()

    def work(self) -> None:
        """What is captured."""
        dit, batch = self.owner.dit, self.batch()
        condition = dit.condition(batch.token_ids)
        x = self.inputs["noise"].to(dit.dtype)
        for time, width in zip(self._times, self._widths, strict=True):
            v = dit.velocity(x, time, condition, batch, self.owner.window, bound=False)
            x = euler_step(x, v, width)
        self.result.copy_(x)


class _FillGraph(_FlowGraph):
    """The pass of a bucket that fills the windows. While it is captured all its rows go to the spare place."""

    def __init__(self, owner: FlowGraphs, rows: int, streams: int):
        dit = owner.dit
        places = {name: ((rows,), torch.int64) for name in ("kept", "places")}
        super().__init__(owner, rows, streams, **places)
        self.inputs["places"].fill_(owner.window.spare_place)
        self.states = torch.zeros(rows, dit.config.num_mels, dtype=dit.dtype, device=dit.device)
        self._time = dit.time_table((FILL_TIME,))[0]
        self.captured = owner.capture(self.work)

    def run(self, jobs: Sequence[FlowJob], states: Tensor) -> None:
        """Fill the inputs, replay."""
        kept, places = np.zeros(self.rows, np.int64), np.full(self.rows, self.owner.window.spare_place)
        for whole, used in zip((kept, places), fill_arrays(jobs), strict=True):
            whole[: len(used)] = used
        arrays = self.batch_arrays(jobs, [job.num_kept for job in jobs])
        self.inputs.load({**arrays, "kept": kept, "places": places})
        self.states[: states.shape[0]].copy_(states)
        self.captured.replay()

    def work(self) -> None:
        """What is captured."""
        dit, batch, inputs = self.owner.dit, self.batch(), self.inputs
        condition = dit.condition(batch.token_ids)
        places = (inputs["kept"], inputs["places"])
        dit.fill_window(self.states, self._time, condition, batch, self.owner.window, *places, bound=False)


class GraphedVocoder(BigVgan):
    """BigVGAN whose passes are replays; batches are filled up with silent items to a power of two."""

    bind = False

    def __init__(self, config: VocoderConfig, weights: dict[str, Tensor], graphs: Graphs):
        super().__init__(config, weights)
        self._graphs = graphs
        self._cache: GraphCache[_VocoderGraph] = GraphCache(VOCODER_GRAPHS)

    def _generate(self, mel: Tensor, lengths: Tensor | None) -> Tensor:
        items = stream_bucket(mel.shape[0])
        key = (items, mel.shape[1], lengths is not None)
        graph = self._cache.get(key, lambda: _VocoderGraph(self, *key))
        return super()._generate(mel, lengths) if graph is None else graph.run(mel, lengths)

    def prepare(self, items: int, frames: int, padded: bool) -> None:
        """Capture the pass that batches of ``items`` mels of (up to, if ``padded``) ``frames`` frames will replay."""
        key = (stream_bucket(items), frames, padded)
        self._cache.put(key, _VocoderGraph(self, *key))

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
