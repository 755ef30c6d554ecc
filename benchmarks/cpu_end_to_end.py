"""Speech in, speech out, against the reference pipeline in plain PyTorch: ``python -m benchmarks.cpu_end_to_end --json OUT``.

Both answer the same spoken questions, greedily, at batch 1, in one working precision: bfloat16, the official code's, unless
``--dtypes`` says others (in any, speech codes are made in float32). With ``--weights int8 int4`` our language model is
``antiphon quantize``'s conversion, the plain side's stays as it is: other answers, of as many steps. With ``--draft int8``
or ``int4`` a quantised copy of our model proposes its tokens: the same answers, and a line says how many it foresaw. With
``--compact off`` our matrices stay as they are in memory; the plain side's always do. The
plain side does what the official code does (``plain_modules``): encoders on PyTorch operators, both branches and both heads at every position, growing
caches, per-frame modulations, half of each chunk vocoded again. Ours is the engine as ``KimiAudio.generate`` runs it, with the
same chunks and overlap. Times by part: recordings, language model, flow matching, vocoder; the rest is everything between.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from antiphon.checkpoint import load_model_config
from antiphon.checkpoint.quantize import SCHEMES, quantize_checkpoint
from antiphon.commands.options import COMPACT
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.execution.llm_runner import LlmRunner
from antiphon.live_request import PreparedRequest, prepare
from antiphon.models.dual_qwen import DualQwen
from antiphon.models.flow_dit import FlowDit
from antiphon.request import GenerationRequest, sampling_params
from antiphon.runtime import Runtime, load_runtime
from antiphon.solo import SoloRun
from antiphon.speech import SpeechOptions, StreamingDetokenizer
from antiphon.streams import TokenStreams
from antiphon_kernels import use_backend
from antiphon_kernels.native import status

from .engine import ROOT, Watch, locate
from .plain_modules import PlainDit, PlainLlm, PlainVocoder
from .report import add_json_option, publish, table

PARTS = ("recordings", "llm", "flow", "vocoder")
COLUMNS = ("model", "dtype", "weights", "draft", "compact", "part", "ours_s", "plain_s", "ratio", "steps", "sound_s")


class Stopwatch:
    """Seconds spent in methods that it was put around."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()

    def around(self, owner: object, method: str, part: str) -> None:
        """Count every call of ``owner.method`` under ``part``."""
        call: Callable = getattr(owner, method)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - start

        setattr(owner, method, timed)


class PlainRunner(LlmRunner):
    """The step loop of ``solo`` over :class:`PlainLlm`: every head at every step, whatever is needed."""

    _token_step = None

    def start_over(self) -> None:
        """Forget the sequence before."""
        self.plain = PlainLlm(self.model.config, self.model.weights)

    def _logits(self, batch, layout, observe) -> tuple[Tensor, Tensor]:
        text, audio = self.plain(self.model.embed(*self._inputs(batch)))
        wants_audio = layout.head_rows.shape[0] > layout.head_split
        return text[None, :] if layout.head_split else text.new_empty(0, len(text)), audio[None][: int(wants_audio)]


class PlainFlow(FlowDit):
    """:class:`PlainDit` where the streaming detokenizer expects our network; one stream."""

    def _pass_for(self, batch):
        return None

    def velocity(self, x, time, condition, batch, window):
        return self._pass(x, time, condition, batch, window)[0]

    def fill_window(self, x, time, condition, batch, window, rows, places):
        for layer, (k, v) in enumerate(self._pass(x, time, condition, batch, window)[1]):
            window.write(layer, k.transpose(0, 1), v.transpose(0, 1), rows, places)

    def _pass(self, x, time, condition, batch, window):
        slot, cached = int(batch.slots[0]), int(batch.cache_lens[0])
        cache = [(k[slot, :cached].transpose(0, 1), v[slot, :cached].transpose(0, 1))
                 for k, v in zip(window.keys, window.values)]  # fmt: skip
        plain = PlainDit(self.config, self.weights)
        return plain(x, time + condition.repeat_interleave(batch.frames_per_token, 0), batch.positions, cache)


class PlainGenerator(PlainVocoder):
    """:class:`PlainVocoder` where the streaming detokenizer expects our vocoder."""

    def run(self, mels: list[Tensor]) -> list[Tensor]:
        return [self(mel[None])[0] for mel in mels]


def in_plain_memory(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies where PyTorch puts them: our loader chooses pages and distances of rows for our kernels."""
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}


class PlainPipeline:
    """The reference pipeline over the weights of ``runtime``."""

    def __init__(self, runtime: Runtime, watch: Stopwatch):
        llm = DualQwen(runtime.llm.config, in_plain_memory(runtime.llm.weights))
        self.runtime, self.watch = replace(runtime, llm=llm), watch
        self.flow = PlainFlow(runtime.config.flow, in_plain_memory(runtime.flow.weights))
        self.vocoder = PlainGenerator(runtime.config.vocoder, runtime.vocoder.weights)
        self.vocoder.dtype, self.vocoder.device = runtime.vocoder.dtype, runtime.vocoder.device
        watch.around(self.flow, "integrate", "flow")
        watch.around(self.flow, "fill_window", "flow")
        watch.around(self.vocoder, "run", "vocoder")

    def answer(self, prepared: PreparedRequest) -> tuple[list[int], np.ndarray]:
        """Speech tokens and samples."""
        runtime, start = self.runtime, time.perf_counter()
        audios = runtime.encoder.encode(prepared.recordings, prepared.with_features)
        self.watch.seconds["recordings"] += time.perf_counter() - start
        prompt = runtime.builder.build(prepared.messages, audios, "both")
        solo, start = SoloRun(runtime.llm, prompt, prepared.request.sampling, prepared.seed), time.perf_counter()
        solo.runner = PlainRunner(runtime.llm, solo.runner.kv, solo.runner.state, head_delay=0)
        solo.runner.start_over()
        steps = list(solo.steps())
        self.watch.seconds["llm"] += time.perf_counter() - start
        _, tokens = TokenStreams.of(runtime.config.llm, [s.text for s in steps], [s.audio for s in steps])
        return tokens, self._speak(tokens, prepared)

    def _speak(self, tokens: list[int], prepared: PreparedRequest) -> np.ndarray:
        voice = StreamingDetokenizer(self.flow, self.vocoder, max_streams=1)
        stream = voice.open(prepared.request.speech, seed=prepared.seed)
        pieces = [np.zeros(0, np.float32)]
        stream.push(tokens)
        stream.finish()
        while stream.ready:
            pieces += voice.run([(stream, *stream.pop())])
        stream.close()
        return np.concatenate(pieces)


class OurPipeline:
    """One engine, one request at a time."""

    def __init__(self, runtime: Runtime, watch: Stopwatch):
        self.engine = Engine(runtime, EngineConfig(max_sequences=1, prefix_caching=False))
        watch.around(runtime.encoder, "start", "recordings")
        watch.around(self.engine.runner, "start", "llm")
        watch.around(runtime.flow, "integrate", "flow")
        watch.around(runtime.flow, "fill_window", "flow")
        watch.around(runtime.vocoder, "run", "vocoder")

    def answer(self, prepared: PreparedRequest) -> tuple[int, float]:
        """Steps and seconds of sound."""
        request_id, watch = self.engine.add(prepared), Watch(self.engine)
        watch.run()
        sound = sum(seconds for _, seconds in watch.audio.get(request_id, []))
        return watch.finish[request_id].usage.steps, sound


def questions(runtime: Runtime, count: int, limit: int) -> list[PreparedRequest]:
    """The recordings of ``examples/questions``, to be answered with text and speech."""
    found = []
    for path in sorted((ROOT / "examples" / "questions").glob("*.wav"))[:count]:
        message = {"role": "user", "message_type": "audio", "content": str(path)}
        request = GenerationRequest([message], "both", sampling_params(max_new_tokens=limit, seed=0), SpeechOptions())
        found.append(prepare(request, runtime))
    return found


def converted(folder: Path, weights: str, work: Path) -> Path:
    """The model of ``folder`` with these weights: itself, or its conversion, made on first use."""
    if weights == "stored":
        return folder
    out = work / f"antiphon-{folder.name.removeprefix('antiphon-')}-{weights}-converted"
    if not (out / "config.json").exists():
        quantize_checkpoint(load_model_config(folder), out, weights)
    return out


def load_both(
    name: str, dtype: str, weights: str, draft: str, compact: str, options: argparse.Namespace
) -> list[Runtime]:
    """Our model with these weights and its draft, and the one of the plain side."""
    folder = locate(name, options.work)
    ours = converted(folder, weights, options.work)
    drafts = None if draft == "none" else draft
    return [
        load_runtime(ours, device="cpu", dtype=dtype, cache_bytes=0, draft=drafts, compact=COMPACT[compact]),
        load_runtime(folder, device="cpu", dtype=dtype, cache_bytes=0, compact=False),
    ]


def compare(name: str, dtype: str, weights: str, draft: str, compact: str, options: argparse.Namespace) -> list[dict]:
    """Rows of one model: whole and by part. Every question is answered twice and the second time counts: operators of the
    plain side prepare themselves for shapes that they have not seen."""
    runtimes = load_both(name, dtype, weights, draft, compact, options)
    watches = [Stopwatch(), Stopwatch()]
    ours, plain = OurPipeline(runtimes[0], watches[0]), PlainPipeline(runtimes[1], watches[1])
    totals, parts, steps, sound = ([], []), (Counter(), Counter()), 0, 0.0
    for prepared in questions(runtimes[0], options.questions, options.limit):
        for counts in (False, True):
            for watch in watches:
                watch.seconds.clear()
            start = time.perf_counter()
            some, seconds = ours.answer(prepared)
            middle = time.perf_counter()
            with use_backend("reference"):
                _, samples = plain.answer(prepared)
            if runtimes[0].dtype == torch.float32 and weights == "stored":
                assert abs(seconds - len(samples) / 24_000) < 1e-6, "both sides must say the same"
            if not counts:
                continue
            for total, took in zip(totals, (middle - start, time.perf_counter() - middle)):
                total.append(took)
            for part, watch in zip(parts, watches):
                part.update(watch.seconds)
            steps, sound = steps + some, sound + seconds
    mine, theirs = sum(totals[0]), sum(totals[1])
    ratio = statistics.median(b / a for a, b in zip(*totals))
    work = ours.engine.runner.counters  # of both rounds, whose tokens are the same
    whole = {"part": "all", "ours_s": mine, "plain_s": theirs, "ratio": ratio, "steps": steps, "sound_s": sound}
    rows = [whole | {"drafted": work.drafted, "accepted": work.accepted}]
    for part in PARTS:
        a, b = (seconds[part] for seconds in parts)
        rows.append({"part": part, "ours_s": a, "plain_s": b, "ratio": b / a if a else None})
    chosen = {"model": name, "dtype": dtype, "weights": weights, "draft": draft, "compact": compact}
    return [chosen | row for row in rows]


def foreseen(row: dict) -> str:
    """How good the draft of a row was."""
    share = row["accepted"] / max(1, row["drafted"])
    return f"draft {row['draft']}: {row['accepted']} of {row['drafted']} drafted pairs accepted, {share:.0%}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["demo", "0.5b"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float32"])
    parser.add_argument("--weights", nargs="+", default=["stored"], choices=["stored", *SCHEMES], help="of our language model")
    parser.add_argument("--draft", nargs="+", default=["none"], choices=["none", *SCHEMES], help="of our model")
    parser.add_argument("--compact", nargs="+", default=["auto"], choices=["auto", "off"], help="weights of our model")
    parser.add_argument("--questions", type=int, default=4, help="each answered twice, once to warm up")
    parser.add_argument("--limit", type=int, default=100, help="steps of an answer at most")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="where synthetic models are kept"
    )
    add_json_option(parser)
    options = parser.parse_args()
    rows = []
    with torch.inference_mode():
        choices = (options.models, options.dtypes, options.weights, options.draft, options.compact)
        for name, dtype, weights, draft, compact in product(*choices):
            if weights != "stored" and draft != "none":
                continue  # quantised weights have no draft
            rows += compare(name, dtype, weights, draft, compact, options)
            print(table(rows[-1 - len(PARTS) :], COLUMNS), flush=True)
            if draft != "none":
                print(foreseen(rows[-1 - len(PARTS)]), flush=True)
    publish("cpu_end_to_end", rows, options.json, native=status(), torch_threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
