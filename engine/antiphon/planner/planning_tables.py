"""The tables of docs/planning.md: rehearse once per architecture and scheme, project for every GPU that shares it.

python -m antiphon.planner.planning_tables [--gpu h100 l4 rtx4090] [--quant bf16 int8 int4] [--reports plan.json ...] > docs/planning.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.presets import kimi_audio_7b
from .floors import decode_bytes, flow_reference_flops
from .gpus import GpuSpec, gpu
from .rehearsal import Rehearsal, rehearse
from .report import Projection, project
from .roofline import GRAPH_GAP
from .step_costs import Efficiency

SCHEMES = ("bf16", "int8", "int4", "fp8")
HEADER = (
    "| scheme | weights GiB | memory GiB for {n} speakers | decode ms, 1 / 8 / 64 rows | ODE chunk ms, 1 / 8 streams | "
    "vocoder ms, 1 / 8 | first audio ms | real-time streams: by time / by memory |"
)


def row(p: Projection) -> str:
    """One scheme on one GPU."""
    ms = {t.name: t.projected * 1e3 for t in p.parts}
    weights = sum(p.memory.weights.values()) / 2**30
    fits = "" if p.memory.fits(p.gpu.memory) else " (does not fit)"
    decode = " / ".join(f"{ms[f'captured decode speech {n}']:.1f}" for n in (1, 8, 64))
    ode = " / ".join(f"{ms[f'ODE steady {n}']:.0f}" for n in (1, 8))
    vocoder = " / ".join(f"{ms[f'vocoder {n}']:.1f}" for n in (1, 8))
    return (
        f"| {p.quant} | {weights:.1f} | {p.memory.total / 2**30:.1f}{fits} | {decode} | {ode} | {vocoder} | "
        f"{p.first_audio['total'] * 1e3:.0f} | {p.streams_by_time} / {p.streams_by_memory} |"
    )


def table(spec: GpuSpec, projections: Sequence[Projection], num_streams: int) -> list[str]:
    """All schemes on one GPU."""
    header = HEADER.format(n=num_streams)
    return [f"## {spec.name}", "", header, "|" + "---|" * (header.count("|") - 1), *map(row, projections), ""]


def counted(rehearsal: Rehearsal) -> list[str]:
    """What does not depend on a GPU's figures."""
    llm, load, parts = rehearsal.config.llm, rehearsal.workload, rehearsal.parts
    lines = ["## Counted, not projected", ""]
    for name, audio in (
        ("captured decode text 1", False),
        *((f"captured decode speech {n}", True) for n in (1, 8, 64)),
    ):
        ratio = parts[name].num_bytes / decode_bytes(llm, int(name.split()[-1]), load.context, True, audio)
        lines.append(
            f"- {name}: {parts[name].launches} launches, {ratio:.3f} of the weights and keys that must be read"
        )
    rows, kept = 4 * (load.chunk + load.look_ahead), 4 * load.chunk
    reference = flow_reference_flops(rehearsal.config.flow, rows, kept, 900, load.ode_steps)
    share = parts["ODE steady 1"].flops / reference
    return [*lines, f"- DiT: {share:.3f} of the reference's operations per chunk of {rows} frames", ""]


def compiled(reports: Sequence[dict]) -> list[str]:
    """What ``antiphon plan --json`` wrote, in the order of the runs: the first of an architecture and scheme compiled everything."""
    lines = [
        "## Kernels, compiled for GPUs that are not there",
        "",
        "Every specialisation that a rehearsal launches, and csrc/cuda through NVRTC. `compiled`: with an empty cache; `cached`: the",
        "same architecture and scheme were compiled for the GPU above. Seconds of the whole `antiphon plan`, rehearsal included, on two",
        "virtual CPUs of a Xeon that other work shared (noisy).",
        "",
        "| GPU | architecture | scheme | kernels | most registers | most shared memory, KiB | spills, bytes | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for r in reports:
        key, kernels = (r["gpu"]["architecture"], r["quant"]), r["kernels"]
        most = [max(k[what] for k in kernels) for what in ("registers", "shared", "stack")]
        lines.append(
            f"| {r['gpu']['name']} | {key[0]} | {key[1]} | {len(kernels)} | {most[0]} | {most[1] / 1024:.0f} | {most[2]} | "
            f"{r['seconds']:.0f} {'cached' if key in seen else 'compiled'} |"
        )
        seen.add(key)
    return [*lines, ""]


def introduction() -> list[str]:
    e = Efficiency()
    return [
        "# What to expect of a GPU",
        "",
        "**Everything in the tables is projected, nothing is measured.** `antiphon plan` runs the full-size engine on a CUDA",
        "device that is not there: every operator is seen with its shapes, its bytes and operations are counted, and its kernels",
        "are compiled for that GPU. Times are bytes at",
        f"{e.bandwidth:.0%} of the published bandwidth or operations at {e.gemm:.0%} of the published dense bf16 arithmetic",
        f"({e.vocoder_conv:.0%} for the vocoder's convolutions), whichever is longer, plus {GRAPH_GAP * 1e6:.0f} us per launch.",
        "",
        "Workload: decode with 512 positions of context, both branches; prompts of 256 positions with 10 s of sound; chunks as the",
        "server makes them (first 13 tokens, then 30, look-ahead 12, 29 Euler steps and the pass that fills the window). First audio",
        "counts encoders, prefill, 18 decode steps, first ODE solve and vocoder pass with nothing else running. Streams by time: speech",
        "and tokens take turns on the device and together take no longer than the sound plays; by memory: 1500 positions each.",
        "int8 and int4 keep the embedding in bf16 and the heads in int8.",
        "",
        "    antiphon plan --gpu h100 [--quant int8|int4|fp8] [--streams N] [--json OUT] [--warm DIR]",
        "    python -m antiphon.planner.planning_tables --reports OUT ... > docs/planning.md",
        "",
        "`--warm DIR` keeps the compiled kernels: start the server with `TRITON_CACHE_DIR=DIR` and `ANTIPHON_CUBIN_DIR=DIR/cubin`,",
        "and it compiles nothing.",
        "",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", nargs="+", default=["h100", "l4", "rtx4090"])
    parser.add_argument("--quant", nargs="+", default=["bf16", "int8", "int4"], choices=SCHEMES)
    parser.add_argument("--reports", nargs="*", type=Path, default=[], metavar="JSON", help="of `antiphon plan --json`")
    options = parser.parse_args(argv)
    reports = [json.loads(path.read_text()) for path in options.reports]
    done: dict[tuple[str, str], Rehearsal] = {}
    lines = []
    for name in options.gpu:
        spec, projections = gpu(name), []
        streams = 64 if spec.memory > 2**36 else 8
        for quant in options.quant:
            scheme = None if quant == "bf16" else quant
            key = (spec.architecture, quant)
            if key not in done:
                done[key] = rehearse(kimi_audio_7b(), spec, quant=scheme)
            projections.append(project(done[key], spec, scheme, streams))
        lines += table(spec, projections, streams)
    lines += counted(next(iter(done.values())))
    print("\n".join([*introduction(), *lines, *(compiled(reports) if reports else [])]))


if __name__ == "__main__":
    main()
