"""The page that is generated from rehearsals: which runs compiled, and what their kernels need."""

from __future__ import annotations

from antiphon.planner.planning_tables import compiled, introduction


def report(gpu: str, architecture: str, quant: str, seconds: float) -> dict:
    kernels = [{"registers": 40, "shared": 2048, "stack": 0}, {"registers": 168, "shared": 1024, "stack": 0}]
    return {"gpu": {"name": gpu, "architecture": architecture}, "quant": quant, "seconds": seconds, "kernels": kernels}


def test_only_the_first_run_of_an_architecture_and_scheme_compiled():
    runs = [report("L4", "sm_89", "int8", 120.4), report("4090", "sm_89", "int8", 60), report("L4", "sm_89", "int4", 99)]
    rows = [line for line in compiled(runs) if line.startswith(("| L4", "| 4090"))]
    assert rows == [
        "| L4 | sm_89 | int8 | 2 | 168 | 2 | 0 | 120 compiled |",
        "| 4090 | sm_89 | int8 | 2 | 168 | 2 | 0 | 60 cached |",
        "| L4 | sm_89 | int4 | 2 | 168 | 2 | 0 | 99 compiled |",
    ]


def test_the_page_says_that_nothing_was_measured():
    assert any("nothing is measured" in line for line in introduction())
