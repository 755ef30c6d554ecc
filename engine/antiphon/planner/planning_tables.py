"""The tables of docs/planning.md, from what ``antiphon plan --json`` wrote about the released model.

python -m antiphon.planner.planning_tables plan-h100-bf16.json plan-h100-int8.json … > docs/planning.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.presets import kimi_audio_7b
from ..execution.memory_plan import MemoryPlan
from .floors import decode_bytes, flow_reference_flops
from .rehearsal import Workload
from .report import memory_of_streams
from .roofline import GRAPH_GAP
from .step_costs import Efficiency

MODEL = kimi_audio_7b()
SCHEMES = ("bf16", "int8", "int4", "fp8")
HEADER = (
    "| scheme | weights GiB | memory GiB for {n} speakers | decode ms, 1 / 8 / 64 rows | ODE chunk ms, 1 / 8 streams | "
    "vocoder ms, 1 / 8 | first audio ms | real-time streams: by time / by memory |"
)


def row(report: dict, memory: MemoryPlan) -> str:
    """One scheme on one GPU."""
    ms = {part["name"]: part["projected"] * 1e3 for part in report["parts"]}
    weights = sum(memory.weights.values()) / 2**30
    fits = "" if memory.fits(report["gpu"]["memory"]) else " (does not fit)"
    decode = " / ".join(f"{ms[f'captured decode speech {n}']:.1f}" for n in (1, 8, 64))
    ode = " / ".join(f"{ms[f'captured ODE steady {n}']:.0f}" for n in (1, 8))
    vocoder = " / ".join(f"{ms[f'captured vocoder {n}']:.1f}" for n in (1, 8))
    return (
        f"| {report['quant']} | {weights:.1f} | {memory.total / 2**30:.1f}{fits} | {decode} | {ode} | {vocoder} | "
        f"{report['first_audio_seconds']['total'] * 1e3:.0f} | {report['streams']['by_time']} / "
        f"{report['streams']['by_memory']} |"
    )


def table(reports: Sequence[dict]) -> list[str]:
    """All schemes on one GPU."""
    gpu = reports[0]["gpu"]
    streams = 64 if gpu["memory"] > 2**36 else 8
    header = HEADER.format(n=streams)
    rows = [row(r, memory_of_streams(MODEL, r["memory"]["weights"], streams)) for r in reports]
    return [f"## {gpu['name']}", "", header, "|" + "---|" * (header.count("|") - 1), *rows, ""]


def counted(report: dict) -> list[str]:
    """What does not depend on a GPU's figures, of a bfloat16 model."""
    parts, load = {part["name"]: part for part in report["parts"]}, Workload()
    lines = ["## Counted, not projected", ""]
    names = (("captured decode text 1", False), *((f"captured decode speech {n}", True) for n in (1, 8, 64)))
    for name, audio in names:
        least = decode_bytes(MODEL.llm, int(name.split()[-1]), load.context, True, audio)
        ratio = parts[name]["num_bytes"] / least
        lines.append(f"- {name}: {parts[name]['launches']} launches, {ratio:.3f} of the weights and keys that must be read")
    rows, kept = 4 * (load.chunk + load.look_ahead), 4 * load.chunk
    share = parts["captured ODE steady 1"]["flops"] / flow_reference_flops(MODEL.flow, rows, kept, 900, load.ode_steps)
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
        "    python -m antiphon.planner.planning_tables OUT ... > docs/planning.md",
        "",
        "`--warm DIR` keeps the compiled kernels: start the server with `TRITON_CACHE_DIR=DIR` and `ANTIPHON_CUBIN_DIR=DIR/cubin`,",
        "and it compiles nothing.",
        "",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, help="written by `antiphon plan --json`, in the order of the runs")
    reports = [json.loads(path.read_text()) for path in parser.parse_args(argv).reports]
    by_gpu: dict[str, list[dict]] = {}
    for report in sorted(reports, key=lambda r: SCHEMES.index(r["quant"])):
        by_gpu.setdefault(report["gpu"]["name"], []).append(report)
    order = dict.fromkeys(report["gpu"]["name"] for report in reports)
    lines = [line for name in order for line in table(by_gpu[name])]
    plain = next((r for r in reports if r["quant"] == "bf16"), None)
    print("\n".join([*introduction(), *lines, *(counted(plain) if plain else []), *compiled(reports)]))


if __name__ == "__main__":
    main()
