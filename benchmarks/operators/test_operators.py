"""``pytest benchmarks/ --benchmark-only``: every operator and shape on whatever device is present.

The 7B's sizes on a GPU, a toy's on a CPU (``ANTIPHON_BENCH_SIZES=full`` or ``toy`` chooses). Beside the time: bytes, operations,
GB/s, and the share of what a large read and a large matrix product reach in the same run.
"""

from __future__ import annotations

import pytest
import torch

from antiphon.environment import bench_sizes
from antiphon.planner.operator_cases import FULL, TOY, Maker, cases
from antiphon.planner.operator_cases_cpu import cpu_cases
from antiphon_kernels import count_calls, operators

from .driver import check, measured_bandwidth, measured_operations, synchronise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = {"full": FULL, "toy": TOY}[bench_sizes(DEVICE.type == "cuda")]
CASES = cases(SIZES) + (cpu_cases(SIZES) if DEVICE.type == "cpu" else [])


@pytest.fixture(scope="session")
def roofline() -> tuple[float, float]:
    """Bytes and operations per second, measured here and now."""
    return measured_bandwidth(DEVICE), measured_operations(DEVICE, torch.bfloat16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator(benchmark, roofline, case):
    operator = operators()[case.operator]
    call = case.build(Maker(DEVICE))
    with count_calls() as calls:
        operator(*call.args)
    ((_, backend), *_) = calls
    assert check(case, case.build(Maker(DEVICE)), backend).ok

    def run():
        operator(*call.args)
        synchronise(DEVICE)

    if case.operator in ("advance_streams", "decode_inputs"):
        # Every call moves the state on; the histories are as long as they are.
        benchmark.pedantic(run, rounds=5)
    else:
        benchmark(run)
    benchmark.extra_info |= {"backend": backend, "bytes": call.bytes, "operations": call.operations}
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        least = max(call.bytes / roofline[0], call.operations / roofline[1])
        benchmark.extra_info |= {"GB/s": call.bytes / seconds / 1e9, "roofline_share": least / seconds}
