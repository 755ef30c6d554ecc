"""Load on a running server: ``python -m benchmarks.serve_load --url http://127.0.0.1:8000 --scenario chat --concurrency 16``.

Closed loop with ``--concurrency`` clients, or Poisson arrivals with ``--rate``. Reports percentiles of TTFT and TTFA (from the end of
the request, or of the user's speech), gaps between pieces of sound, viability (share of pieces in time), RTF and errors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
import urllib.request
from pathlib import Path

import numpy as np

from .report import add_json_option, publish, table
from .serve_clients import SCENARIOS, Measured, Target, recordings

COLUMNS = ("scenario", "requests", "per_second", "errors", "left", "ttft_p50", "ttft_p95", "ttfa_p50", "ttfa_p95")
COLUMNS += ("gap_p95", "viability", "rtf_p50", "latency_p95")


def main() -> None:
    arguments = parse()
    key = arguments.key
    target = Target(arguments.url.rstrip("/"), arguments.model or served_model(arguments.url, key), key, arguments.hangup)
    measured, seconds = asyncio.run(load(arguments, target))
    rows = [summary(name, [m for m in measured if m.scenario == name], seconds) for name in sorted({m.scenario for m in measured})]
    print(table(rows, COLUMNS))
    if arguments.plot:
        plot(measured, arguments.plot)
    how = {"concurrency": arguments.concurrency, "rate": arguments.rate, "seconds": seconds, "model": target.model}
    publish("serve_load", rows, arguments.json, **how)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", help="default: the one that is served")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="chat")
    parser.add_argument("--concurrency", type=int, default=4, help="clients of the closed loop")
    parser.add_argument("--rate", type=float, help="arrivals per second instead of a closed loop")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--hangup", type=float, default=0.0, help="share of the clients that leave in the middle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    add_json_option(parser)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    return arguments


def served_model(url: str, key: str) -> str:
    """The first model of ``/v1/models``."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url.rstrip("/") + "/v1/models", headers=headers), timeout=10) as answer:
        return json.load(answer)["data"][0]["id"]


async def load(arguments: argparse.Namespace, target: Target) -> tuple[list[Measured], float]:
    """All measurements, and how long it took."""
    sounds, measured, start = recordings(), [], time.monotonic()
    clients = SCENARIOS[arguments.scenario]

    async def one(number: int) -> None:
        measured.append(await clients[number % len(clients)](target, sounds))

    if arguments.rate:
        tasks = set()
        while time.monotonic() - start < arguments.seconds:
            tasks.add(asyncio.ensure_future(one(len(tasks))))
            await asyncio.sleep(random.expovariate(arguments.rate))
        await asyncio.gather(*tasks)
    else:

        async def worker(number: int) -> None:
            while time.monotonic() - start < arguments.seconds:
                await one(number)

        await asyncio.gather(*(worker(number) for number in range(arguments.concurrency)))
    return measured, time.monotonic() - start


def summary(name: str, measured: list[Measured], seconds: float) -> dict:
    """One row; times in seconds."""
    good = [m for m in measured if m.error is None and not m.left]
    chunks, late = (sum(getattr(m.clock, f"num_{what}") for m in good) for what in ("chunks", "late"))
    ttfa = [m.clock.first - m.start for m in good if m.clock.first is not None]
    errors: dict[str, int] = {}
    for m in measured:
        if m.error is not None:
            errors[m.error] = errors.get(m.error, 0) + 1
    return {
        "scenario": name,
        "requests": len(measured),
        "per_second": len(measured) / seconds,
        "errors": sum(errors.values()),
        "error_kinds": errors,
        "left": sum(m.left for m in measured),
        **percentiles("ttft", [m.first_text for m in good if m.first_text is not None]),
        **percentiles("ttfa", ttfa),
        **percentiles("gap", [gap for m in good for gap in m.clock.gaps]),
        "viability": 1 - late / chunks if chunks else None,
        **percentiles("rtf", [m.end / m.clock.seconds for m in good if m.clock.seconds]),
        **percentiles("latency", [m.end for m in good]),
    }


def percentiles(name: str, values: list[float]) -> dict[str, float | None]:
    """p50, p95, p99."""
    if not values:
        return {f"{name}_p{p}": None for p in (50, 95, 99)}
    return {f"{name}_p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}


def plot(measured: list[Measured], path: Path) -> None:
    """Distributions of TTFT, TTFA and latency, one line per scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = {
        "first text": lambda m: m.first_text,
        "first sound": lambda m: None if m.clock.first is None else m.clock.first - m.start,
        "whole answer": lambda m: m.end,
    }
    figure, axes = plt.subplots(1, len(kinds), figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (title, value) in zip(axes, kinds.items()):
        for name in sorted({m.scenario for m in measured}):
            found = sorted(v for m in measured if m.scenario == name and m.error is None and (v := value(m)) is not None)
            if found:
                axis.step(found, np.arange(1, len(found) + 1) / len(found), label=name, where="post")
        axis.set(title=title, xlabel="seconds")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
