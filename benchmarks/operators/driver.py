"""Checks one case of one backend against the reference, and times it: what the benchmark suite and the GPU run share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from antiphon.planner.operator_cases import Call, Case, Maker
from antiphon_kernels import operators

FLOOR = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Rounding floor of a result, relative to the largest true value."""
WRITTEN = {"rope_cache": slice(5, 7), "advance_streams": slice(3, 8), "decode_inputs": slice(7, 9)}
"""Arguments that an operator writes to; they are compared like results."""


@dataclass(frozen=True)
class Check:
    """``share`` of the error budget that was used (0 or infinity for ints); ``launches`` is not counted on a GPU."""

    ok: bool
    share: float
    error: float


def results(function: Callable, name: str, args: tuple) -> list[Tensor]:
    """Results and written arguments of one call on copies of what it writes."""
    written = WRITTEN.get(name, slice(0, 0))
    mine = list(args)
    mine[written] = [a.clone() for a in mine[written]]
    out = function(*mine)
    return [*(out if isinstance(out, tuple) else (out,)), *mine[written]]


def widen(args: tuple) -> tuple:
    """Every 16-bit float tensor in float32: sums of the reference are then as good as exact beside a 16-bit result."""
    return tuple(
        a.float() if isinstance(a, Tensor) and a.dtype in (torch.bfloat16, torch.float16) else
        a.double() if isinstance(a, Tensor) and a.dtype == torch.float32 else a
        for a in args
    )  # fmt: skip


def check(case: Case, call: Call, backend: str) -> Check:
    """Hold a backend's results against the reference, with at most twice the reference's own error in that dtype."""
    operator = operators()[case.operator]
    got = results(operator.implementation(backend), case.operator, call.args)
    own = results(operator.reference, case.operator, call.args)
    truth = own if case.exact else results(operator.reference, case.operator, widen(call.args))
    worst, largest_error = 0.0, 0.0
    for mine, theirs, true in zip(got, own, truth):
        if not mine.dtype.is_floating_point:
            worst = max(worst, 0.0 if torch.equal(mine, theirs) else float("inf"))
            continue
        error, allowed = ((x.double() - true.double()).abs().max().item() for x in (mine, theirs))
        budget = 2 * allowed + (FLOOR[mine.dtype] + case.rounding) * true.abs().max().item()
        finite = bool(mine.isfinite().all())
        worst, largest_error = (
            max(worst, error / budget if finite and budget else float("inf")),
            max(largest_error, error),
        )
    return Check(worst <= 1, worst, largest_error)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Median time of one call on a GPU, by its events, the L2 cache flushed before each; on a CPU the time of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measured_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large sum reads on this device, the roofline's slope."""
    size = 1 << (30 if device.type == "cuda" else 28)
    x = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size / _ceiling_seconds(lambda: x.sum(), device)


def measured_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, the roofline's ceiling."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / _ceiling_seconds(lambda: a @ a, device)


def _ceiling_seconds(run: Callable[[], object], device: torch.device) -> float:
    """On a CPU the best of some calls: the first one sets up the product's kernel and its memory."""
    return min(median_seconds(run, device, 10) for _ in range(1 if device.type == "cuda" else 6))


def run_case(
    case: Case, device: torch.device, dtype: torch.dtype, backend: str, roofline: tuple[float, float]
) -> dict | None:
    """Check and time; None if the backend does not take this case. ``roofline``: bytes and operations per second."""
    operator = operators()[case.operator]
    call = case.build(Maker(device, dtype))
    if not operator.supports(backend, *call.args):
        return None
    verdict = check(case, call, backend)
    function = operator.implementation(backend)
    seconds = median_seconds(lambda: function(*call.args), device)
    least = max(call.bytes / roofline[0], call.operations / roofline[1])
    return {
        "case": case.name, "backend": backend, "ok": verdict.ok, "budget_used": verdict.share, "us": seconds * 1e6,
        "GB/s": call.bytes / seconds / 1e9, "TFLOP/s": call.operations / seconds / 1e12, "roofline": least / seconds,
    }  # fmt: skip
