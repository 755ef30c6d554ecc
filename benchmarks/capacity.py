"""SIMULATED capacity of a GPU: ``python -m benchmarks.capacity --gpu h100 --arrivals poisson --json OUT``.

The real scheduler and both policies run on a virtual clock; every encoding, language-model step and speech batch of the
7B model takes its roofline time. For each number of ODE evaluations the arrival rate is searched that still keeps 95 %
of the first sounds within ``--max-ttfa`` and ``--min-viability`` of the pieces in time. Nothing here was measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from antiphon.checkpoint.presets import kimi_audio_7b
from antiphon.planner.capacity import Simulation, find_capacity
from antiphon.planner.gpus import GPUS, gpu
from antiphon.planner.simulated_load import ARRIVALS, Limits, Outcome, Workload
from antiphon.planner.step_costs import StepCosts
from antiphon.scheduler import DeadlinePolicy, FcfsPolicy, Policy
from antiphon.speech import SpeechOptions

from .report import add_json_option, publish, table

COLUMNS = (
    "policy", "evaluations", "rate", "streams_held", "ttfa_p50", "ttfa_p95", "ttfa_p99", "viability",
    "streams_without_gap", "pages_used_peak", "busy_llm", "busy_dit", "busy_vocoder", "bottleneck",
)  # fmt: skip


def row(outcome: Outcome, policy: str, evaluations: int) -> dict:
    """One table row, marked as simulated."""
    values = {key: value for key, value in asdict(outcome).items() if key not in ("ttfa", "ttft", "busy")}
    for name, group in (("ttfa", outcome.ttfa), ("ttft", outcome.ttft), ("busy", outcome.busy)):
        values |= {f"{name}_{key}": _finite(value) for key, value in group.items()}
    return {
        "simulated": True,
        "policy": policy,
        "evaluations": evaluations,
        **values,
        "bottleneck": outcome.bottleneck,
    }


def policies(costs: StepCosts) -> dict[str, Callable[[], Policy]]:
    """The policies to compare."""
    return {"deadline": partial(DeadlinePolicy, cost=costs), "fcfs": FcfsPolicy}


def plot(rows: list[dict], path: Path, title: str) -> None:
    """First-audio time and viability against streams held, one line per policy and number of evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), constrained_layout=True)
    for axis, key, label in zip(
        axes, ("ttfa_p95", "viability", "pages_used_peak"), ("first audio p95 [s]", "viability", "KV pages used, peak")
    ):
        for evaluations in sorted({r["evaluations"] for r in rows}, reverse=True):
            for policy, style in (("deadline", "-o"), ("fcfs", "--x")):
                points = sorted(
                    (r["rate"], r[key])
                    for r in rows
                    if (r["policy"], r["evaluations"]) == (policy, evaluations) and r[key] is not None
                )
                if points:
                    axis.plot(*zip(*points), style, label=f"{policy}, {evaluations} evaluations", markersize=4)
        axis.set(xlabel="requests per second", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"SIMULATED: {title}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    a = _arguments(argv)
    workload = Workload(a.question, a.answer, text_share=a.text_share)
    speech = SpeechOptions(
        first_chunk=a.first_chunk, chunk=a.chunk, chunk_growth=a.chunk_growth, look_ahead=a.look_ahead,
        overlap="lookahead", eager=True,
    )  # fmt: skip
    limits = Limits(max_sequences=a.max_streams)
    print(f"SIMULATED capacity of {gpu(a.gpu).name}; {a.arrivals} arrivals, {a.seconds:g} s virtual time per run")
    rows, best_rows = [], []
    for evaluations in a.evaluations:
        costs = StepCosts(gpu(a.gpu), kimi_audio_7b(), evaluations)
        for name, make_policy in policies(costs).items():
            simulation = Simulation(costs, make_policy, workload, speech, limits)
            run = partial(simulation.run, seconds=a.seconds, warm_up=a.seconds / 5, seed=a.seed, arrivals=a.arrivals)
            best, runs = find_capacity(run, a.rate, a.max_ttfa, a.min_viability, a.tolerance)
            rows += [row(outcome, name, evaluations) for outcome in runs]
            best_rows.append(row(best, name, evaluations))
            print(f"  {name}, {evaluations} evaluations: {best.streams_held:.0f} streams, limit: {best.bottleneck}")
    print(f"\nHighest load with first audio p95 <= {a.max_ttfa:g} s and viability >= {a.min_viability:g} (simulated):")
    print(table(best_rows, COLUMNS))
    assumptions = costs.assumptions() | {
        "evaluations": a.evaluations, "workload": asdict(workload), "speech": asdict(speech), "limits": asdict(limits)
    }  # fmt: skip
    print("\nAssumptions:")
    for key, value in assumptions.items():
        print(f"  {key}: {value}")
    path = a.plot or (a.json.with_suffix(".png") if a.json else None)
    if path is not None:
        plot(rows, path, f"Kimi-Audio-7B, bf16, {gpu(a.gpu).name}, {a.arrivals} arrivals")
    publish("capacity", best_rows, a.json, simulated=True, assumptions=assumptions, runs=rows)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100")
    parser.add_argument("--arrivals", choices=ARRIVALS, default="poisson")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[30, 15, 10], help="ODE network passes per chunk")
    parser.add_argument("--question", type=float, default=4.0, help="median seconds of a question")
    parser.add_argument("--answer", type=float, default=10.0, help="median seconds of an answer")
    parser.add_argument("--text-share", type=float, default=0.0, help="share of requests that want text only")
    parser.add_argument("--first-chunk", type=int, default=12)
    parser.add_argument("--chunk", type=int, default=36)
    parser.add_argument("--chunk-growth", type=float, default=1.5)
    parser.add_argument("--look-ahead", type=int, default=6)
    parser.add_argument("--max-streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second to start the search from")
    parser.add_argument("--seconds", type=float, default=90.0, help="virtual seconds per run")
    parser.add_argument("--max-ttfa", type=float, default=1.0)
    parser.add_argument("--min-viability", type=float, default=0.99)
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative width at which the search ends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="default: beside the JSON file")
    add_json_option(parser)
    return parser.parse_args(argv)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
