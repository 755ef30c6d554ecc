"""Speech tokens of many streams to sound: chunks of a step share one ODE solve and one batch of the vocoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..config import HOP_OUT
from ..errors import ConfigError, EngineError, InputError
from ..execution.graphs import Graphs
from ..execution.side_stream import Arrivals, SideStream
from ..models.bigvgan import BigVgan
from ..models.flow_dit import FlowDit
from .flow_solver import FlowJob, solve
from .noise import NoiseSource
from .options import SpeechOptions
from .receptive_field import ReceptiveField
from .speech_graphs import FlowGraphs, GraphedVocoder
from .stitching import open_stitcher
from .stream import SpeechStream
from .window_pool import WindowPool

SpeechWork = tuple[SpeechStream, list[int], bool]
"""A stream, the new tokens of its next chunk, and whether that chunk is its last: ``(stream, *stream.pop())``."""


class StreamingDetokenizer:
    """The output side of the model.

    Args:
        dit: flow-matching network, tokens to mel.
        vocoder: mel to sound, 480 samples a frame.
        max_streams: windows to hold; each takes depth * 2 * 900 * hidden values of memory.
        graphs: how to capture solves and vocoder passes whose shape comes again; None: never.
    """

    def __init__(self, dit: FlowDit, vocoder: BigVgan, max_streams: int = 1, graphs: Graphs | None = None):
        if vocoder.config.hop != HOP_OUT or vocoder.config.num_mels != dit.config.num_mels:
            raise ConfigError(
                f"vocoder makes {vocoder.config.hop} samples of {vocoder.config.num_mels} mels a frame; "
                f"expected {HOP_OUT} of {dit.config.num_mels}"
            )
        self.dit = dit
        self.vocoder = vocoder if graphs is None else GraphedVocoder(vocoder.config, vocoder.weights, graphs)
        self.pool = WindowPool(dit.config, max_streams, dit.dtype, dit.device)
        self._passes = None if graphs is None else FlowGraphs(dit, self.pool.window, graphs)
        self.field = ReceptiveField.of(vocoder.config)
        self._side = SideStream(dit.device)

    def open(
        self,
        options: SpeechOptions | None = None,
        *,
        seed: int | None = None,
        noise: Iterable[np.ndarray] | None = None,
        record: bool = False,
    ) -> SpeechStream:
        """A new stream. EngineError if ``max_streams`` are open.

        ``noise``: one array [rows, num_mels] per chunk instead of the generator seeded with ``seed``; ``record`` keeps mels.
        """
        options = options or SpeechOptions()
        config = self.dit.config
        if options.max_frames > config.max_positions:
            raise InputError(
                f"a chunk of {options.max_frames} frames exceeds the network's {config.max_positions} positions; "
                "choose a smaller chunk or look_ahead"
            )
        source = NoiseSource(config.num_mels, seed, noise)
        stitcher = open_stitcher(options, self.field, config.num_mels, self.dit.device)
        return SpeechStream(options, config, self.pool.acquire(), source, stitcher, self.pool.release, record)

    def run(self, work: Sequence[SpeechWork]) -> list[np.ndarray]:
        """Solve and vocode one chunk of each stream; returns the samples that are ready, float32 (possibly none) each.

        Errors as :meth:`start` says.
        """
        return self.start(work).arrays()

    @torch.no_grad()
    def start(self, work: Sequence[SpeechWork]) -> Arrivals:
        """As :meth:`run`, without waiting for the samples: on a GPU they are made beside the language model.

        Streams that got their last chunk are closed. InputError (noise that does not fit) comes before anything is
        changed: the work can be given again without the stream at fault, which ``error.stream`` names.
        """
        streams = [stream for stream, _, _ in work]
        if len({id(stream) for stream in streams}) != len(streams) or any(stream.closed for stream in streams):
            raise EngineError("each stream may come once per call, and not after it was closed")
        jobs = [_plan(*item) for item in work]
        with self._side.work():
            return self._start(work, streams, jobs)

    def _start(self, work: Sequence[SpeechWork], streams: list[SpeechStream], jobs: list[FlowJob]) -> Arrivals:
        states = self._solve(streams, jobs)
        windows = []
        for (stream, _, final), job, state in zip(work, jobs, states, strict=True):
            mel = state * self.dit.config.mel_std + self.dit.config.mel_mean
            windows.append(stream.stitcher.window(mel[: job.num_kept], mel[job.num_kept :], final))
            stream.advance(job, mel[: job.num_kept])
        sounds = self.vocoder.run(windows)
        pieces = [stream.stitcher.emit(sound) for stream, sound in zip(streams, sounds, strict=True)]
        for (stream, _, final), piece in zip(work, pieces, strict=True):
            stream.samples_out += len(piece)
            if final:
                stream.close()
        return Arrivals(pieces)

    def detokenize(self, tokens: Iterable[int], options: SpeechOptions | None = None, **how) -> np.ndarray:
        """All of an utterance at once, float32 [1920 * tokens]; ``how`` as for :meth:`open`."""
        stream = self.open(options, **how)
        try:
            stream.push(tokens)
            stream.finish()
            pieces = [np.zeros(0, np.float32)]
            while stream.ready:
                pieces += self.run([(stream, *stream.pop())])
            return np.concatenate(pieces)
        finally:
            stream.close()

    def _solve(self, streams: Sequence[SpeechStream], jobs: Sequence[FlowJob]) -> list[torch.Tensor]:
        """Final states in the order of ``jobs``; one ragged solve per number of ODE steps."""
        config = self.dit.config
        states = [torch.zeros(0, config.num_mels, dtype=self.dit.dtype, device=self.dit.device)] * len(jobs)
        for steps in sorted({stream.options.ode_steps for stream in streams}):
            group = [i for i, s in enumerate(streams) if s.options.ode_steps == steps and jobs[i].num_rows]
            if group:
                solved = solve(self.dit, self.pool.window, [jobs[i] for i in group], steps, self._passes)
                for index, state in zip(group, solved, strict=True):
                    states[index] = state
        return states


def _plan(stream: SpeechStream, tokens: list[int], final: bool) -> FlowJob:
    try:
        return stream.plan(tokens, final)
    except InputError as error:
        error.stream = stream
        raise
