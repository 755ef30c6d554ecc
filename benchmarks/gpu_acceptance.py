"""The CUDA path on a real GPU in one command, under 10 minutes: ``python -m benchmarks.gpu_acceptance [--json OUT]``.

Every operator of the 7B's shapes against its reference, on every backend there is; rows alone against rows in a batch, to the
bit; a whole model of random weights, reference against kernels; CUDA graphs against eager; then latency and throughput of
decode. A table, one JSON line, and exit status 1 if anything was wrong. ``--rehearse`` runs all of it at toy size on a
CPU, kernels in Triton's interpreter: its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / root) for root in ("engine", "kernels", "")]


def operator_rows(context: Context) -> Iterator[dict]:
    """Check and time every case on every GPU backend."""
    from antiphon.planner.operator_cases import cases
    from benchmarks.operators.driver import measured_bandwidth, measured_operations, run_case

    roofline = measured_bandwidth(context.device), measured_operations(context.device, context.dtype)
    yield {"case": "read bandwidth", "ok": True, "GB/s": roofline[0] / 1e9}
    yield {"case": "matrix product", "ok": True, "TFLOP/s": roofline[1] / 1e12}
    for case in cases(context.sizes):
        if context.chosen and case.operator not in context.chosen:
            continue
        for backend in context.backends:
            row = run_case(case, context.device, context.dtype, backend, roofline)
            if row is not None:
                yield row


def invariance_rows(context: Context) -> Iterator[dict]:
    """The first row of a batch of any size is bitwise that row alone."""
    import torch

    from antiphon.planner.operator_cases import Maker
    from antiphon_kernels import operators

    maker, hidden = Maker(context.device, context.dtype), context.sizes.hidden
    x, weight, norm = maker.values(max(context.sizes.rows), hidden), maker.weight(1, hidden, hidden), maker.values(1, hidden)
    gate_up = maker.weight(1, 2 * context.sizes.intermediate, hidden)
    calls: dict[str, Callable] = {
        "rms_norm": lambda r: operators()["rms_norm"].implementation("triton")(r, norm, len(r), 1e-6),
        "linear": lambda r: operators()["linear"].implementation("triton")(r, weight, None, len(r)),
        "linear_silu_mul": lambda r: operators()["linear_silu_mul"].implementation("triton")(r, gate_up, len(r)),
    }
    for name, run in calls.items():
        alone = run(x[:1])
        for rows in context.sizes.rows[1:]:
            same = torch.equal(run(x[:rows])[:1], alone)
            yield {"case": f"{name}: row alone == row of {rows}", "ok": same}


def random_llm(context: Context):
    """A language model of random weights made on the device, with its pages and state."""
    import torch

    from antiphon.execution.decode_state import DecodeState
    from antiphon.execution.kv_cache import allocate, sizes_for
    from antiphon.execution.llm_runner import LlmRunner
    from antiphon.models.dual_qwen import DualQwen
    from antiphon.planner.fake_model import packed_shapes

    torch.manual_seed(0)
    weights = {}
    for name, like in packed_shapes(context.config, dtype=context.dtype)["llm"].items():
        tensor = torch.empty(like.shape, dtype=like.dtype, device=context.device)
        is_norm = "norm" in name or name.endswith("4.weight")
        weights[name] = tensor.fill_(1) if is_norm else tensor.normal_(0, like.shape[-1] ** -0.5)
    llm = context.config.llm
    streams = max(context.batches)
    pages = allocate(llm, sizes_for(llm, streams * context.positions), context.dtype, context.device)
    return LlmRunner(DualQwen(llm, weights), pages, DecodeState(llm, streams, context.device))


def step(runner, streams: int, start: int, rows: int, positions: int):
    """A step batch of ``streams`` speaking sequences with ``rows`` rows each from position ``start``."""
    import numpy as np

    from antiphon.execution.kv_cache import PAGE_SIZE
    from antiphon.execution.step_batch import StepBatch

    own = positions // PAGE_SIZE
    pages = np.arange(streams * own, dtype=np.int32).reshape(streams, own)
    offset = runner.kv.upper.shape[2] // 2
    ids = np.random.default_rng(start).integers(0, runner.config.audio_token_offset, (2, streams * rows))
    everyone = np.ones(streams, dtype=bool)
    return StepBatch(
        slots=np.arange(streams), starts=np.full(streams, start), lengths=np.full(streams, rows), samples=everyone,
        steps=np.full(streams, 9), run_text=everyone, run_audio=everyone, audio_ids=ids[0], text_ids=ids[1], feature_rows=None,
        features=None, tables=(pages, pages, pages + np.int32(offset)),
    )  # fmt: skip


def model_rows(context: Context) -> Iterator[dict]:
    """Prefill and decode of the whole language model: kernels against reference, graphs against eager, then speed."""
    import torch

    from antiphon.execution.step_batch import build_layout
    from antiphon_kernels import use_backend

    runner = random_llm(context)
    streams, prompt = context.batches[min(1, len(context.batches) - 1)], context.prompt

    def logits(batch):
        layout, _ = build_layout(batch, 0, context.device)
        audio, text = (torch.from_numpy(i).to(context.device) for i in (batch.audio_ids, batch.text_ids))
        rows = torch.full_like(audio, -1)
        x = runner.model.embed(audio, text, None, rows)
        return runner.model.logits(runner.model.hidden(x, layout, runner.kv), layout)

    with torch.inference_mode():
        for label, batch in (
            ("prefill", step(runner, streams, 0, prompt, context.positions)),
            ("decode", step(runner, streams, prompt, 1, context.positions)),
        ):
            with use_backend("reference"):
                expected = [x.float() for x in logits(batch)]
            got = [x.float() for x in logits(batch)]
            error = max((a - b).norm().item() / b.norm().item() for a, b in zip(got, expected))
            yield {"case": f"whole model, {label}: rms error", "ok": error < context.tolerance, "budget_used": error / context.tolerance}
        yield from graph_rows(context, runner, streams)
        yield from speed_rows(context, runner)


def graph_rows(context: Context, runner, streams: int) -> Iterator[dict]:
    """The network of a decode step captured and replayed: the same bits as eager. Without a GPU: run twice."""
    import torch

    from antiphon.execution.step_batch import build_layout

    batch = step(runner, streams, context.prompt, 1, context.positions)
    layout, _ = build_layout(batch, 0, context.device)
    audio, text = (torch.from_numpy(i).to(context.device) for i in (batch.audio_ids, batch.text_ids))
    rows = torch.full_like(audio, -1)

    def run():
        return runner.model.logits(runner.model.hidden(runner.model.embed(audio, text, None, rows), layout, runner.kv), layout)

    eager = [x.clone() for x in run()]
    if context.device.type != "cuda":
        yield {"case": "decode step twice, eager", "ok": all(map(torch.equal, run(), eager))}
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = run()
    for x in captured:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    yield {"case": "decode step, graph == eager", "ok": all(map(torch.equal, captured, eager))}
    begin = time.perf_counter()
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    yield {"case": f"decode step as a graph, batch {streams}", "ok": True, "us": (time.perf_counter() - begin) / 20 * 1e6}


def speed_rows(context: Context, runner) -> Iterator[dict]:
    """Decode through the runner, sampling and state machine included."""
    from antiphon.request import SamplingParams

    for slot in range(max(context.batches)):
        runner.state.open(slot, SamplingParams(), slot, True, 10**6)
    for streams in context.batches:
        runner.run(step(runner, streams, context.prompt, 1, context.positions))
        begin = time.perf_counter()
        for i in range(context.steps):
            runner.run(step(runner, streams, context.prompt + 1 + i, 1, context.positions))
        seconds = (time.perf_counter() - begin) / context.steps
        yield {"case": f"decode, batch {streams}", "ok": True, "us": seconds * 1e6, "steps/s": streams / seconds}


class Context:
    """Device and sizes of the run, made once from the options."""

    def __init__(self, rehearse: bool, chosen: list[str]):
        import torch

        from antiphon.checkpoint.presets import kimi_audio_7b, nano
        from antiphon.planner.operator_cases import FULL, TOY

        self.rehearse, self.chosen = rehearse, set(chosen)
        self.device = torch.device("cpu" if rehearse else f"cuda:{torch.cuda.current_device()}")
        self.dtype, self.sizes = torch.bfloat16, TOY if rehearse else FULL
        self.backends = ("triton",) if rehearse else ("triton", "cuda")
        self.config = nano() if rehearse else kimi_audio_7b()
        self.batches, self.prompt, self.positions, self.steps = ((1, 2), 20, 48, 1) if rehearse else ((1, 8, 64), 512, 1024, 30)
        self.tolerance = 0.03
        """Of bfloat16 logits, relative rms: 34 layers of rounding in two orders of summation."""


def main(argv: list[str] | None = None) -> int:
    """Run all parts, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU, kernels in Triton's interpreter")
    parser.add_argument("--operators", nargs="*", default=[], help="only these operators")
    parser.add_argument("--skip-model", action="store_true", help="operators only")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the JSON line to this file")
    options = parser.parse_args(argv)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from antiphon_kernels import triton_interpreter, triton_support
    from benchmarks.report import publish, table

    if not triton_support.available or not (options.rehearse or torch.cuda.is_available()):
        print("needs Triton, and a GPU unless --rehearse is given", file=sys.stderr)
        return 2
    if options.rehearse:
        triton_interpreter.install()
        triton_interpreter.serve_cpu()
    context = Context(options.rehearse, options.operators)
    parts = [operator_rows, invariance_rows, *(() if options.skip_model else (model_rows,))]
    rows = []
    for part in parts:
        for row in part(context):
            rows.append(row)
            print("ok   " if row["ok"] else "WRONG", row["case"], row.get("backend", ""), flush=True)
    print(table(rows, ("case", "backend", "ok", "budget_used", "us", "GB/s", "TFLOP/s", "roofline", "steps/s")))
    wrong = [row["case"] for row in rows if not row["ok"]]
    publish("gpu_acceptance", rows, options.json, rehearsal=options.rehearse, wrong=wrong, triton=sys.modules["triton"].__version__)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
