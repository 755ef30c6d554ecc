"""Measurements of a load test as rows and as a plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .serve_clients import Measured

COLUMNS = [
    "phase",
    "scenario",
    "requests",
    "per_second",
    "errors",
    "left",
    "ttft_p50",
    "ttft_p95",
    "ttfa_p50",
    "ttfa_p95",
    "gap_p95",
]
COLUMNS += ["viability", "rtf_p50", "latency_p50", "latency_p95"]
MEMORY_COLUMNS = ("process", "first_mb", *(f"quarter{number}_mb" for number in range(1, 5)), "most_mb", "growth")


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
            found = sorted(
                v for m in measured if m.scenario == name and m.error is None and (v := value(m)) is not None
            )
            if found:
                axis.step(found, np.arange(1, len(found) + 1) / len(found), label=name, where="post")
        axis.set(title=title, xlabel="seconds")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
