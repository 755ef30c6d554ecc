"""Runs the engine's own code at full size on a fake CUDA device, part by part, and keeps what the recorder saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..audio import mel
from ..config import FRAMES_PER_TOKEN, ModelConfig
from ..execution.audio_encoder import AudioEncoder
from ..execution.decode_graphs import DecodeGraphs
from ..execution.decode_state import DecodeState
from ..execution.kv_cache import PAGE_SIZE, allocate, sizes_for
from ..execution.llm_runner import LlmRunner
from ..execution.step_batch import StepBatch
from ..models.bigvgan import BigVgan
from ..models.speech_tokenizer import padded_widths
from ..speech.flow_solver import FILL_TIME, FlowJob, ode_schedule, solve
from ..speech.speech_graphs import FlowGraphs, GraphedVocoder, row_bucket, stream_bucket
from ..speech.window_pool import WINDOW_ROWS, WindowPool, WindowSlot
from .fake_device import fake_cuda
from .fake_model import FakeModel, build, packed_shapes
from .gpus import GpuSpec
from .op_costs import Lengths
from .recorder import Part, Recorder

SLOTS = 64


@dataclass(frozen=True)
class Workload:
    """What is rehearsed; chunks as the server makes them.

    ``context``: positions of a decode step's sequences; ``prompt``: positions of the prefill, half of them heard;
    ``first_chunk``, ``chunk`` and ``look_ahead`` in speech tokens; ``*vocoder_frames``: mel frames with their context.
    """

    batches: tuple[int, ...] = (1, 8, 64)
    context: int = 512
    prompt: int = 256
    audio_seconds: float = 10.0
    first_chunk: int = 13
    chunk: int = 30
    look_ahead: int = 12
    ode_steps: int = 29
    first_vocoder_frames: int = 48
    vocoder_frames: int = 209
    speech_batches: tuple[int, ...] = (1, 8)


@dataclass(frozen=True)
class Rehearsal:
    """The recorder's parts by name, the kernels met, and the weights."""

    config: ModelConfig
    workload: Workload
    parts: dict[str, Part]
    kernels: list
    weight_bytes: dict[str, int]
    fallbacks: tuple[str, ...]


@dataclass(frozen=True)
class Sequence_:
    """One sequence of a rehearsed step: rows, first position, branches."""

    rows: int
    start: int
    text: bool = True
    audio: bool = True


def rehearse(
    config: ModelConfig, gpu: GpuSpec, workload: Workload | None = None, quant: str | None = None
) -> Rehearsal:
    """Everything, on one fake device. RehearsalError if the engine would wait for the device or mix devices.

    ``quant``: scheme of the language model's matrices, "int8", "int4" or "fp8"; None for bfloat16.
    """
    workload = workload or Workload()
    ode_schedule(workload.ode_steps)
    shapes = packed_shapes(config, quant)
    recorder = Recorder(int(gpu.architecture.removeprefix("sm_")))
    with fake_cuda() as device:
        model = build(config, shapes, device)
        _make_constants(model, workload)
        _rehearse_encoders(recorder, model, workload)
        _rehearse_language_model(recorder, model, workload, device)
        _rehearse_speech(recorder, model, workload)
    return Rehearsal(
        config, workload, recorder.parts, list(recorder.kernels), model.weight_bytes, tuple(sorted(recorder.fallbacks))
    )


def _make_constants(model: FakeModel, workload: Workload) -> None:
    """Tables that are made once, at the first use, and uploaded then."""
    mel._hann(model.whisper.device)
    mel._filters(model.whisper.device)
    times, _ = ode_schedule(workload.ode_steps)
    model.flow.time_table(times)
    model.flow.time_table((FILL_TIME,))


def _rehearse_encoders(recorder: Recorder, model: FakeModel, workload: Workload) -> None:
    segment = np.zeros(int(workload.audio_seconds * 16_000), np.float32)
    encoder = AudioEncoder(model.whisper, model.tokenizer)
    with recorder.part("whisper"):
        (features,) = encoder.run_segments(model.whisper, [segment])
    with recorder.part("speech tokenizer"):
        list(encoder.run_segments(model.tokenizer, [segment], padded_widths([len(segment)])))
    with recorder.part("adaptor"):
        model.llm.adapt(features)


def _rehearse_language_model(recorder: Recorder, model: FakeModel, workload: Workload, device: torch.device) -> None:
    config = model.config.llm
    kv = allocate(config, sizes_for(config, 4 * PAGE_SIZE), torch.bfloat16, device)
    runner = LlmRunner(model.llm, kv, DecodeState(config, SLOTS + 1, device))
    features = torch.empty(workload.prompt // 2, config.hidden_size, dtype=torch.bfloat16, device=device)
    prompt = Sequence_(workload.prompt, 0)
    _step(recorder, runner, "prefill", [prompt], features)
    for batch in workload.batches:
        position = Sequence_(1, workload.context - 1)
        _step(recorder, runner, f"decode text {batch}", [Sequence_(1, workload.context - 1, audio=False)] * batch)
        _step(recorder, runner, f"decode speech {batch}", [position] * batch)
    _rehearse_captured(recorder, runner, workload, "text", 1)
    for batch in workload.batches:
        _rehearse_captured(recorder, runner, workload, "speech", batch)
    _step(recorder, runner, "decode audio only 1", [Sequence_(1, workload.context - 1, text=False)])
    some = workload.batches[1] if len(workload.batches) > 1 else 2
    mixed = [Sequence_(1, workload.context - 1)] * some + [Sequence_(1, workload.context - 1, audio=False)] * some
    _step(recorder, runner, "mixed", [*mixed, prompt], features)


def _step(recorder: Recorder, runner: LlmRunner, name: str, sequences: Sequence[Sequence_], features=None) -> None:
    """One ragged step of the language model; every sequence draws."""
    batch = step_batch(sequences, features)
    with recorder.part(name, lengths_of(sequences)):
        runner.start(batch)


class _Replays:
    """Captures by remembering; a replay runs the work."""

    def __init__(self, work: Callable[[], None] | None = None):
        self._work = work

    def capture(self, work: Callable[[], None]) -> _Replays:
        return _Replays(work)

    def fork(self) -> _Replays:
        return self

    def replay(self) -> None:
        self._work()


def _rehearse_captured(recorder: Recorder, runner: LlmRunner, workload: Workload, kind: str, batch: int) -> None:
    """One decode step as a graph captures it: its inputs from the state on the device. Fixed tensors are made before."""
    graphs = DecodeGraphs(runner.model, runner.kv, runner.state, _Replays(), runner.delay)
    sequences = [Sequence_(1, workload.context - 1, audio=kind == "speech")] * batch
    step = step_batch(sequences)
    bucket = graphs.graph(graphs.bucket(step)).bucket
    with recorder.part(f"captured decode {kind} {batch}", lengths_of([sequences[0]] * bucket.rows)):
        graphs.run(step)


def step_batch(sequences: Sequence[Sequence_], features: torch.Tensor | None = None) -> StepBatch:
    """The batch that the engine would build for ``sequences``; prompts read all of ``features`` first."""
    n = len(sequences)
    lengths = np.array([s.rows for s in sequences])
    rows = int(lengths.sum())
    width = max(-(-(s.start + s.rows) // PAGE_SIZE) for s in sequences)
    tables = np.zeros((max(n, SLOTS), width), np.int32)
    feature_rows = None
    if features is not None:
        feature_rows = np.full(rows, -1)
        feature_rows[-len(features) :] = np.arange(len(features))
    return StepBatch(
        slots=np.arange(n),
        starts=np.array([s.start for s in sequences]),
        lengths=lengths,
        samples=np.ones(n, bool),
        steps=np.full(n, 100),
        run_text=np.array([s.text for s in sequences]),
        run_audio=np.array([s.audio for s in sequences]),
        audio_ids=np.zeros(rows, np.int64),
        text_ids=np.zeros(rows, np.int64),
        feature_rows=feature_rows,
        features=features,
        tables=(tables, tables, tables),
    )


def lengths_of(sequences: Sequence[Sequence_]) -> Lengths:
    """Rows and contexts of the trunk's sequences, of the branches' (text, then audio) and of each branch's own."""
    text, audio = [s for s in sequences if s.text], [s for s in sequences if s.audio]
    groups = (text, audio, text + audio, sequences)
    return Lengths({len(g): ([s.rows for s in g], [s.start + s.rows for s in g]) for g in groups})


def _rehearse_speech(recorder: Recorder, model: FakeModel, workload: Workload) -> None:
    """Solves and vocoder passes, eager and as graphs capture them (those with their fixed tensors made before)."""
    pool = WindowPool(model.config.flow, max(workload.speech_batches), torch.bfloat16, model.flow.device)
    slots = [pool.acquire() for _ in range(max(workload.speech_batches))]
    first, steady = workload.first_chunk, workload.look_ahead + workload.chunk
    flow = FlowGraphs(model.flow, pool.window, _Replays())
    vocoder = GraphedVocoder(model.vocoder.config, model.vocoder.weights, _Replays())
    chunks = [("first chunk", 1, first, workload.first_vocoder_frames)]
    chunks += [(f"steady {n}", n, steady, workload.vocoder_frames) for n in workload.speech_batches]
    for label, batch, tokens, frames in chunks:
        short = label.removeprefix("steady ")
        jobs = _jobs(model, slots[:batch], tokens, workload)
        _solve(recorder, model, pool, jobs, f"ODE {label}", workload)
        _vocode(recorder, model.vocoder, f"vocoder {short}", batch, frames)
        flow.prepare(sum(j.num_rows for j in jobs), sum(j.num_kept for j in jobs), batch, workload.ode_steps)
        vocoder.prepare(batch, frames, False)
        _solve(recorder, model, pool, jobs, f"captured ODE {label}", workload, flow)
        _vocode(recorder, vocoder, f"captured vocoder {short}", batch, frames)
        for slot in slots:
            slot.clear()
            slot.advance(WINDOW_ROWS)
    vocoder.prepare(2, workload.vocoder_frames, True)
    _vocode(recorder, vocoder, "captured vocoder padded", 2, workload.vocoder_frames, shorter=8)


def _vocode(recorder: Recorder, vocoder: BigVgan, name: str, batch: int, frames: int, shorter: int = 0) -> None:
    """A batch of mels, the last one by ``shorter`` frames."""
    mel = torch.empty(frames, vocoder.config.num_mels, dtype=torch.bfloat16, device=vocoder.device)
    with recorder.part(name):
        vocoder.run([*[mel] * (batch - 1), mel[: frames - shorter]])


def _jobs(model: FakeModel, slots: Sequence[WindowSlot], tokens: int, workload: Workload) -> list[FlowJob]:
    """A chunk of ``tokens`` tokens for each slot."""
    rows = tokens * FRAMES_PER_TOKEN
    kept = rows - workload.look_ahead * FRAMES_PER_TOKEN
    noise = torch.empty(rows, model.config.flow.num_mels)
    return [FlowJob([0] * tokens, slot.num_rows, noise, slot, kept, fill=True) for slot in slots]


def _solve(
    recorder: Recorder,
    model: FakeModel,
    pool: WindowPool,
    jobs: Sequence[FlowJob],
    name: str,
    workload: Workload,
    graphs: FlowGraphs | None = None,
) -> None:
    """One batched solve and the pass that fills the windows; both count the rows of the solve. Slots stay as they are."""
    n, rows, cached = len(jobs), [job.num_rows for job in jobs], [job.slot.num_rows for job in jobs]
    places = {n: (rows, cached)}
    if graphs is not None:
        idle = stream_bucket(n) - n
        unused = row_bucket(sum(rows)) - sum(rows)
        places = {n + idle + 1: ([*rows, *[0] * idle, unused], [*cached, *[0] * (idle + 1)])}
    with recorder.part(name, Lengths(flow=places)):
        solve(model.flow, pool.window, jobs, workload.ode_steps, graphs)
    for job, before in zip(jobs, cached):
        job.slot.clear()
        job.slot.advance(before)
