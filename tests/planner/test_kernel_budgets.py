"""Compiled kernels stay within their budgets on GPUs that are not there: registers, shared memory, spills, instructions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from antiphon.planner.kernel_budgets import FULL, QUICK, build_all, cases, faults, load_table, record
from antiphon.planner.kernel_compile import CAPABILITIES, unique
from antiphon_kernels import triton_support

pytestmark = pytest.mark.skipif(not triton_support.available, reason="needs triton")


def check(builds) -> None:
    table = load_table()
    wrong = {b.label: f for b in builds if (f := faults(b, table[str(b.capability)]))}
    assert not wrong


@pytest.fixture(scope="module")
def quick_builds():
    """One case of each kind of kernel for the H100, which has the widest choice of instructions."""
    return build_all([90], quick=True)


def test_quick_cases_keep_their_budgets(quick_builds):
    check(quick_builds)
    assert {b.capability for b in quick_builds} == {90} and len(quick_builds) >= 15


def test_a_spill_and_a_lost_instruction_would_be_seen(quick_builds):
    """The check itself can fail, for every reason that it knows."""
    table = load_table()["90"]
    attention = next(b for b in quick_builds if b.launch.name == "prefill_kernel")
    assert faults(attention, table) == []
    for change in ({"stack": 8}, {"mma": 0}, {"wide_loads": 0}, {"registers": 256}, {"shared": 10**6}):
        assert faults(replace(attention, **change), table)
    assert faults(attention, {})


@pytest.mark.wide
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_specialisation_keeps_its_budget(capability):
    check(build_all([capability]))


def test_every_case_is_recorded_for_every_gpu():
    """Launchers run on meta tensors; only float8 is refused, on sm_80."""
    selected = cases(FULL)
    assert set(QUICK) <= {case.name for case in selected} and len({case.name for case in selected}) == len(selected)
    counts = {capability: len(unique(record(selected, capability))) for capability in CAPABILITIES}
    assert counts[80] < counts[90] == counts[120]
    for case in selected:
        launches = record([case], 90)
        assert launches and all(all(n > 0 for n in launch.grid) for launch in launches), case.name


def test_the_table_knows_every_specialisation():
    table = load_table()
    from antiphon.planner.kernel_compile import specialisation

    for capability in CAPABILITIES:
        labels = {specialisation(launch) for launch in record(cases(FULL), capability)}
        assert labels <= set(table[str(capability)])
