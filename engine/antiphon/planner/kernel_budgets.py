"""Every Triton specialisation that the 7B model launches, compiled for GPUs that are not there and held to a budget.

    python -m antiphon.planner.kernel_budgets [--capability 80 90 100 120] [--operator NAME ...] [--quick] [--write]

No spills anywhere; registers and shared memory as in ``kernel_budgets.json``; tensor-core instructions in every attention and
matrix kernel of 16-bit types; 128-bit loads in every kernel that streams. ``--write`` measures the table anew, and forgets
specialisations that nothing launches any more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Container, Iterable
from pathlib import Path

from antiphon_kernels import operators
from antiphon_kernels.triton_support import Launch, recording

from .kernel_compile import CAPABILITIES, SHARED_LIMIT, Build, compile_launches, specialisation
from .operator_cases import FULL, Case, Maker, cases

TABLE = Path(__file__).with_suffix(".json")
HEADROOM = 1.1
"""Budget over what was measured: other versions of Triton and ptxas allocate a little differently."""
MMA_KERNELS = {
    "prefill_kernel", "decode_kernel", "flow_attention_kernel", "encoder_attention_kernel", "linear_kernel",
    "linear_int8_kernel", "linear_int4_kernel", "linear_fp8_kernel",
}  # fmt: skip
STREAMING_KERNELS = MMA_KERNELS | {
    "dual_embed_kernel", "rms_norm_kernel", "add_rms_norm_kernel", "silu_mul_kernel", "rope_cache_kernel",
    "layer_norm_modulate_kernel", "gate_residual_kernel", "flow_rope_kernel", "euler_step_kernel", "quantise_rows_kernel",
    "chunk_kernel",
}  # fmt: skip
QUICK = (
    "add_rms_norm[T=1]", "rope_cache[T=1]", "linear[o,T=1]", "linear[o,T=64]", "linear[o,T=512]", "linear_silu_mul[T=1]",
    "linear_int8[o,T=1]", "linear_int4[o,T=1]", "linear_int8_silu_mul[T=1]", "linear_int4_silu_mul[T=1]", "paged_attention[decode,S=1]", "paged_attention[prefill,T=512]",
    "sample_tokens[top-5,R=1]", "advance_streams[R=1]", "decode_inputs[R=1]", "flow_attention[S=1]", "layer_norm_modulate[S=1]",
)  # fmt: skip
"""Cases of the short run: one of each kind of kernel."""


def record(selected: Iterable[Case], capability: int) -> list[Launch]:
    """The launches of the cases on a GPU of that capability; a case whose backend refuses that GPU launches nothing."""
    with recording(capability) as launches:
        for case in selected:
            operator, call = operators()[case.operator], case.build(Maker("meta"))
            if operator.supports("triton", *call.args):
                operator.implementation("triton")(*call.args)
    return launches


def faults(build: Build, budgets: dict[str, dict[str, int]]) -> list[str]:
    """What is wrong with a build, in words; ``budgets`` is the table of its capability."""
    found = []
    if build.stack:
        found.append(f"{build.stack} bytes of spilled registers per thread")
    if build.shared > SHARED_LIMIT[build.capability]:
        found.append(f"{build.shared} bytes of shared memory, the GPU has {SHARED_LIMIT[build.capability]}")
    budget = budgets.get(build.label)
    if budget is None:
        found.append("not in the table: run with --write")
    else:
        found += [
            f"{what} {getattr(build, what)} over the budget of {budget[what]}"
            for what in ("registers", "shared")
            if getattr(build, what) > budget[what]
        ]
    narrow = any(kind in ("*fp32",) for _, kind in build.launch.signature[:2])
    if build.launch.name in MMA_KERNELS and not narrow and not build.mma:
        found.append("no tensor-core instructions")
    if build.launch.name in STREAMING_KERNELS and not build.wide_loads:
        found.append("no 128-bit loads")
    return found


def budget_of(build: Build) -> dict[str, int]:
    """A little more than was measured, registers in the allocator's steps of 8."""
    registers = min(-(-int(build.registers * HEADROOM) // 8) * 8, 255)
    return {"registers": registers, "shared": min(int(build.shared * HEADROOM) + 1024, SHARED_LIMIT[build.capability])}


def load_table() -> dict[str, dict[str, dict[str, int]]]:
    """Budgets by capability (as a string) and specialisation."""
    return json.loads(TABLE.read_text())


def build_all(
    capabilities: Iterable[int], quick: bool = False, cache: Path | None = None, chosen: Container[str] | None = None
) -> list[Build]:
    """Compile the cases (of the ``chosen`` operators) for each capability; ``cache`` keeps the binaries (Triton's layout)."""
    selected = [c for c in cases(FULL) if not quick or c.name in QUICK]
    selected = [c for c in selected if chosen is None or c.operator in chosen]
    return compile_launches({c: record(selected, c) for c in capabilities}, cache=cache)


def write(builds: Iterable[Build]) -> None:
    """Put the builds into the table; what no case launches goes."""
    table = load_table() if TABLE.exists() else {}
    for build in builds:
        table.setdefault(str(build.capability), {})[build.label] = budget_of(build)
    for capability, budgets in table.items():
        launched = {specialisation(launch) for launch in record(cases(FULL), int(capability))}
        table[capability] = {label: budget for label, budget in budgets.items() if label in launched}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Print every build, its faults, and the number of both; exit status 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES), choices=sorted(SHARED_LIMIT))
    parser.add_argument("--operator", nargs="+", choices=sorted(operators()), help="only the kernels of these")
    parser.add_argument("--quick", action="store_true", help="one case of each kind of kernel")
    parser.add_argument("--write", action="store_true", help="measure the table anew")
    options = parser.parse_args(argv)
    builds = build_all(options.capability, options.quick, chosen=options.operator)
    if options.write:
        write(builds)
    table = load_table()
    bad = 0
    print(f"{'sm':>4} {'regs':>4} {'shared':>7} {'stack':>5} {'mma':>4} {'ld128':>5} {'st128':>5}  specialisation")
    for b in builds:
        print(f"{b.capability:>4} {b.registers:>4} {b.shared:>7} {b.stack:>5} {b.mma:>4} {b.wide_loads:>5} {b.wide_stores:>5}  {b.label}")
        for fault in faults(b, table.get(str(b.capability), {})):
            bad += 1
            print(f"     FAULT: {fault}")
    print(f"{len(builds)} builds, {bad} faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
