"""Decode and prefill beside other engines, in one run on one model: ``python -m benchmarks.peers --json OUT``.

A random Qwen2 (the text path of a synthetic preset) in bfloat16, run by us and by Hugging Face transformers, and by vLLM's CPU
build and llama.cpp where ``--vllm PYTHON`` and ``--llama-cpp PYTHON`` name the interpreters of virtual environments that have them
(their install lines: ``peer_workers/``). All are loaded, warmed up and measured in turn, the other one's process stopped,
so that each pair of times saw the same machine; the ratio is the median over pairs. Decoding counts tokens of all sequences behind
``--context`` positions. That transformers and llama.cpp compute the same model is checked first. Our matrices are what loading makes
of them by default on this CPU: compact, the same numbers in 12 bits each, where that decodes faster; ``--compact off`` leaves them
plain.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from antiphon.checkpoint.presets import PRESETS
from antiphon.commands.options import COMPACT
from antiphon.config import LlmConfig
from antiphon_kernels import operator
from antiphon_kernels.native import prefers_compact, status

from .peer_models import Antiphon, Transformers, Worker, hf_config, hf_weights, same_logits, text_only
from .report import add_json_option, publish, table

COLUMNS = ("task", "size", "antiphon", "peer", "name", "unit", "ratio", "ratio_min", "ratio_max", "native_steps")
LARGEST_DIFFERENCE = 0.03
"""Rms of the logits' difference over their rms that two bfloat16 implementations may show."""


def write_hf_checkpoint(config: LlmConfig, hf: dict[str, torch.Tensor], folder: Path) -> None:
    """``config.json`` and ``model.safetensors`` as vLLM reads them; no tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    hf_config(config).save_pretrained(folder)
    save_file(hf, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def worker_of(name: str, python: Path, config: LlmConfig, hf: dict[str, torch.Tensor]) -> Iterator[Worker]:
    """A peer's process on the model, which lies in a folder that goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        write_hf_checkpoint(config, hf, Path(folder))
        worker = Worker(name, python, Path(folder))
        try:
            yield worker
        finally:
            worker.close()


def check(ours: Antiphon, theirs: Transformers | Worker) -> float:
    """How far the logits of a prompt lie apart; AssertionError where that is too far for one model."""
    difference = same_logits(ours, theirs, range(1, 33))
    assert difference < LARGEST_DIFFERENCE, f"{theirs.name} runs another model: logits differ by {difference:.3f}"
    return difference


def pairs(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> list[tuple[float, float]]:
    """Times of both in turn, after one call of each that does not count; who goes first alternates."""
    ours(), theirs()
    found = []
    for number in range(repeats):
        if number % 2:
            second = theirs()
            found.append((ours(), second))
        else:
            first = ours()
            found.append((first, theirs()))
    return found


def row(task: str, size: int, peer: str, times: list[tuple[float, float]], tokens: int) -> dict:
    """One line of the table: tokens per second of both and the ratio over pairs."""
    ratios = [theirs / ours for ours, theirs in times]
    ours, theirs = (tokens / statistics.median(side) for side in zip(*times))
    return {
        "task": task, "size": size, "antiphon": ours, "peer": theirs, "name": peer, "unit": "tokens/s",
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
    }  # fmt: skip


def compare(ours: Antiphon, peer: Transformers | Worker, options: argparse.Namespace) -> list[dict]:
    """Rows against one peer."""
    rows = []
    for batch in options.batches:
        decode = (batch, options.context, options.steps)
        times = pairs(partial(ours.decode, *decode), partial(peer.decode, *decode), options.repeats)
        rows.append(row("decode", batch, peer.name, times, batch * options.steps))
        with operator.count_calls() as calls:
            ours.decode(batch, options.context, 2)
            rows[-1]["native_steps"] = calls["model_step", "native"] / 2
    times = pairs(partial(ours.prefill, options.prompt), partial(peer.prefill, options.prompt), options.repeats)
    return [*rows, row("prefill", options.prompt, peer.name, times, options.prompt)]


def main() -> None:
    """Parse, load, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=PRESETS, default="0.5b", help="preset whose text path is used")
    parser.add_argument("--layers", type=int, help="fewer layers, for a quick look")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--context", type=int, default=64, help="positions before the first decode step")
    parser.add_argument("--steps", type=int, default=24, help="decode steps per measurement")
    parser.add_argument("--prompt", type=int, default=512, help="ids of the prefill")
    parser.add_argument("--repeats", type=int, default=5, help="pairs per row")
    parser.add_argument("--compact", choices=COMPACT, default="auto", help="our bfloat16 matrices, as the engine's option")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="interpreter of a virtual environment with vLLM")
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON", help="the same with llama-cpp-python and gguf")
    add_json_option(parser)
    options = parser.parse_args()
    config = text_only(PRESETS[options.model](Path()).llm)
    if options.layers:
        config = replace(config, num_layers=options.layers, num_trunk_layers=max(1, options.layers - 1))
    hf = hf_weights(config)
    longest = max(options.prompt, options.context + options.steps)
    compact = prefers_compact(torch.bfloat16) if COMPACT[options.compact] is None else COMPACT[options.compact]
    ours, theirs = Antiphon(config, hf, max(options.batches), longest, compact), Transformers(config, hf)
    differences, versions = {"transformers": check(ours, theirs)}, {"transformers": theirs.version}
    rows = compare(ours, theirs, options)
    for name, python in (("vllm", options.vllm), ("llama_cpp", options.llama_cpp)):
        if python:
            with worker_of(name, python, config, hf) as worker:
                versions[name] = worker.version
                if name == "llama_cpp":  # vLLM does not give logits
                    differences[name] = check(ours, worker)
                rows += compare(ours, worker, options)
    print(status())
    print(table(rows, COLUMNS))
    parameters = sum(w.numel() for name, w in hf.items() if "embed" not in name)
    publish(
        "peers",
        rows,
        options.json,
        native=status(),
        parameters=parameters,
        compact=compact,
        logit_differences=differences,
        versions=versions,
    )


if __name__ == "__main__":
    main()
