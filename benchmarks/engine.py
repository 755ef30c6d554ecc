"""The engine under concurrency: ``python -m benchmarks.engine [--models tiny demo 0.5b] [--json OUT]``.

Closed batches of 1 to 16 equal requests: tokens per second (language-model steps of all requests together), time to first
audio, gaps between chunks, streaming viability. Then: a short request beside one with 30 s of audio; a second turn with
and without the prefix cache; chunks of 8 voices in one solve against 8 solves. The 0.5 B model is random weights in the
official layout, written once into ``--work``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from antiphon.checkpoint.presets import PRESETS
from antiphon.checkpoint.synthetic import write_checkpoint
from antiphon.config import FRAMES_PER_TOKEN
from antiphon.deltas import AudioDelta, FinishDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.request import GenerationRequest, sampling_params
from antiphon.runtime import Runtime, load_runtime
from antiphon.speech import SpeechOptions, StreamingDetokenizer

from .report import add_json_option, publish, table

ROOT = Path(__file__).resolve().parents[1]
CONCURRENCY = (1, 2, 4, 8, 16)
SPEECH = SpeechOptions(first_chunk=18, chunk_growth=2.0, overlap="lookahead", ode_steps=9)


def locate(name: str, work: Path) -> Path:
    """Folder of a benchmark model; a synthetic one is written on first use."""
    folders = {"tiny": ROOT / "tests" / "data" / "tiny", "demo": ROOT / "examples" / "demo_model"}
    if name in folders:
        return folders[name]
    folder = work / f"antiphon-{name}"
    if not (folder / "config.json").exists():
        print(f"writing the synthetic {name} model to {folder}", flush=True)
        write_checkpoint(PRESETS[name](folder), folder)
    return folder


def make_request(output_type: str, seconds: float, limit: int, seed: int, *, history=None) -> GenerationRequest:
    """Noise as the question: what is said does not matter to the time. Sampled, so that the answers differ."""
    noise = np.random.default_rng(seed).standard_normal(int(seconds * 16_000)).astype(np.float32) * 0.1
    message = {"role": "user", "message_type": "audio", "content": (noise, 16_000)}
    sampling = sampling_params(text_temperature=1.0, audio_temperature=1.0, max_new_tokens=limit, seed=seed)
    return GenerationRequest([message], output_type, sampling, SPEECH, history=history)


class Watch:
    """Runs an engine until it is idle and keeps when each request's sound and end came."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.audio: dict[str, list[tuple[float, float]]] = {}
        self.finish: dict[str, FinishDelta] = {}

    def run(self) -> float:
        """Seconds until the engine is idle."""
        start = time.perf_counter()
        while self.engine.has_work:
            for request_id, delta in self.engine.step():
                if isinstance(delta, AudioDelta):
                    sound = (time.perf_counter(), len(delta.pcm) / delta.sample_rate)
                    self.audio.setdefault(request_id, []).append(sound)
                elif isinstance(delta, FinishDelta):
                    self.finish[request_id] = delta
                else:
                    assert not isinstance(delta, Exception), delta
        return time.perf_counter() - start

    def gaps(self) -> list[float]:
        """Seconds between neighbouring chunks."""
        return [b - a for chunks in self.audio.values() for (a, _), (b, _) in itertools.pairwise(chunks)]

    def viability(self) -> float | None:
        """Share of chunks that came before the sound before them had been played."""
        in_time = []
        for chunks in self.audio.values():
            plays_until = chunks[0][0]
            for arrival, seconds in chunks:
                in_time.append(arrival <= plays_until + 1e-9)
                plays_until = max(plays_until, arrival) + seconds
        return sum(in_time) / len(in_time) if in_time else None


def throughput(runtime: Runtime, name: str, output_type: str, limit: int) -> list[dict]:
    """Rows over concurrency, each with sounds not heard before and then with the same sounds, whose encodings are kept."""
    engine = Engine(runtime, EngineConfig(max_sequences=16, prefix_caching=False))
    serve(engine, [make_request(output_type, 1.0, limit, 1)])  # warms up
    rows: list[dict] = []
    for sounds in ("fresh", "encoded"):
        alone = None
        for count in CONCURRENCY:
            first = 1000 * len(output_type) + 100 * count  # sounds that no other run encodes
            measured = serve(engine, [make_request(output_type, 1.0, limit, first + i) for i in range(count)])
            alone = alone or measured["tokens_per_s"]
            row = {"model": name, "output": output_type, "sounds": sounds, "concurrent": count}
            rows.append(row | {"speedup": measured["tokens_per_s"] / alone} | measured)
    return rows


def serve(engine: Engine, requests: list[GenerationRequest]) -> dict:
    """All requests at once, to the end."""
    ids = [engine.add(request) for request in requests]
    watch = Watch(engine)
    seconds = watch.run()
    steps = sum(watch.finish[i].usage.steps for i in ids)
    first = [t for i in ids if (t := watch.finish[i].timings.first_audio) is not None]
    text = [t for i in ids if (t := watch.finish[i].timings.first_text) is not None]
    gaps = watch.gaps()
    return {
        "tokens_per_s": steps / seconds,
        "ttft_s": statistics.median(text) if text else None,
        "ttfa_s": statistics.median(first) if first else None,
        "gap_p50_s": statistics.median(gaps) if gaps else None,
        "gap_max_s": max(gaps, default=None),
        "viability": watch.viability(),
    }


def beside_long_audio(runtime: Runtime, name: str, limit: int) -> dict:
    """Time to first audio of a short request alone, and beside a request with 30 s of audio added just before."""
    times = []
    for with_long in (False, False, True):
        engine = Engine(runtime, EngineConfig(max_sequences=4, prefix_caching=False))
        if with_long:
            engine.add(make_request("text", 30.0, 4, 7))
            engine.step()
        short = engine.add(make_request("both", 1.0, limit, 8))
        watch = Watch(engine)
        watch.run()
        times.append(watch.finish[short].timings.first_audio)
    return {"model": name, "alone_s": times[1], "beside_s": times[2], "ratio": times[2] / times[1]}


def second_turn(runtime: Runtime, name: str) -> dict:
    """Time to first token of a second turn after 60 s of history, with and without the prefix cache."""
    rows = {}
    for caching in (True, False):
        engine = Engine(runtime, EngineConfig(max_sequences=1, prefix_caching=caching, keep_text_branch=True))
        first = engine.add(make_request("both", 60.0, 40, 9))
        live = engine.live[first]
        Watch(engine).run()
        history = engine.conversation(live)
        second = engine.add(make_request("text", 1.0, 1, 10, history=history))
        before, watch = engine.runner.counters.trunk_rows, Watch(engine)
        watch.run()
        timings, usage = watch.finish[second].timings, watch.finish[second].usage
        rows[caching] = (timings.finished - timings.encoded, engine.runner.counters.trunk_rows - before, usage)
    (cached_s, cached_rows, usage), (plain_s, plain_rows, _) = rows[True], rows[False]
    return {
        "model": name,
        "history": len(history),
        "new": usage.prompt_tokens - len(history),
        "computed_cached": cached_rows,
        "computed_plain": plain_rows,
        "cached_s": cached_s,
        "plain_s": plain_s,
        "ratio": plain_s / cached_s,
    }


class Stopwatch:
    """Adds up the time inside a method of an object, from now on."""

    def __init__(self, owner: object, method: str):
        self.seconds = 0.0
        inner = getattr(owner, method)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, method, timed)

    def read(self) -> float:
        """Seconds since the last reading."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def batched_voice(runtime: Runtime, name: str, streams: int = 8, repeats: int = 5) -> dict:
    """One chunk of 8 streams in one solve against one solve each; medians of interleaved runs, flow and vocoder apart.

    ``linear_ratio``: the same for the matrix products of one block alone, which bounds what a batch can save.
    """
    voice = StreamingDetokenizer(runtime.flow, runtime.vocoder, max_streams=streams)
    watches = {"flow": Stopwatch(voice, "_solve"), "vocoder": Stopwatch(voice.vocoder, "run")}
    times: dict[tuple[str, bool], list[float]] = {(part, way): [] for part in watches for way in (True, False)}
    for _ in range(repeats):
        for batched in (True, False):
            opened = [voice.open(SPEECH, seed=i) for i in range(streams)]
            for i, stream in enumerate(opened):
                stream.push(np.random.default_rng(i).integers(0, runtime.config.flow.semantic_vocab_size, SPEECH.first_chunk + 1))
            work = [(stream, *stream.pop()) for stream in opened]
            frames = len(work[0][1]) * FRAMES_PER_TOKEN
            for group in [work] if batched else [[item] for item in work]:
                voice.run(group)
            for part, watch in watches.items():
                times[part, batched].append(watch.read())
            for stream in opened:
                stream.close()
    row: dict = {"model": name, "streams": streams, "frames": frames}
    for part in watches:
        together, alone = statistics.median(times[part, True]), statistics.median(times[part, False])
        row |= {f"{part}_together_s": together, f"{part}_alone_s": alone, f"{part}_ratio": together / alone}
    return row | linear_ratio(runtime, frames, streams)


def linear_ratio(runtime: Runtime, frames: int, streams: int, repeats: int = 9) -> dict:
    """Time of one block's matrix products over all rows at once, over that of as many calls as there are streams."""
    flow = runtime.flow
    maps = [f"blocks.0.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    work = sum(2 * flow.weights[f"{part}.weight"].numel() * frames * streams for part in maps)
    seconds: dict[int, list[float]] = {1: [], streams: []}
    for _ in range(repeats):
        for calls, measured in seconds.items():
            total = 0.0
            for part in maps:
                weight = flow.weights[f"{part}.weight"]
                x = torch.randn(frames * streams // calls, weight.shape[1]).to(weight.dtype)
                start = time.perf_counter()
                for _ in range(calls):
                    flow._linear(part, x)
                total += time.perf_counter() - start
            measured.append(total)
    together, alone = statistics.median(seconds[1]), statistics.median(seconds[streams])
    return {
        "linear_ratio": together / alone,
        "linear_together_gflops": work / together / 1e9,
        "linear_alone_gflops": work / alone / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "demo", "0.5b"])
    parser.add_argument("--outputs", nargs="+", default=["text", "both"], help="output types of the throughput runs")
    parser.add_argument("--limit", type=int, default=64, help="steps per request")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where synthetic models are kept")
    add_json_option(parser)
    arguments = parser.parse_args()
    rows, long_rows, turn_rows, voice_rows = [], [], [], []
    for name in arguments.models:
        runtime = load_runtime(locate(name, arguments.work))
        for output_type in arguments.outputs:
            rows += throughput(runtime, name, output_type, arguments.limit)
            print(table(rows[-2 * len(CONCURRENCY) :], list(rows[0])), flush=True)
        long_rows.append(beside_long_audio(runtime, name, arguments.limit))
        turn_rows.append(second_turn(runtime, name))
        voice_rows.append(batched_voice(runtime, name))
        for some in (long_rows, turn_rows, voice_rows):
            print(table(some[-1:], list(some[-1])), flush=True)
    publish("engine", rows, arguments.json, beside_long=long_rows, second_turn=turn_rows, batched_voice=voice_rows)


if __name__ == "__main__":
    main()
