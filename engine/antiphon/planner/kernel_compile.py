"""Compile Triton specialisations for a GPU that is not there, and read what the binary needs and does.

    python -m antiphon.planner.kernel_compile < jobs.json > builds.jsonl

A job is a recorded launch (``antiphon_kernels.triton_support.Launch``) and a compute capability. Compilation runs in
worker processes: Triton decides at import whether kernels are compiled or interpreted, so a process that interprets
cannot compile. Triton's own cache (TRITON_CACHE_DIR) keeps the results, which is also how a container is warmed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from antiphon_kernels.triton_support import Launch

CAPABILITIES = (80, 90, 100, 120)
"""sm_80 A100, sm_90 H100, sm_100 B200, sm_120 RTX 50 and RTX PRO 6000. sm_86 and sm_89 run what is built for 80's rules."""
SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Shared memory that one block may use, bytes (CUDA programming guide, table of compute capabilities)."""
MMA = re.compile(r"\b(?:[HQIO]MMA|[HQI]GMMA|UTC[A-Z]*MMA)[.\s]")
WIDE_LOAD = re.compile(r"\b(?:LDG\.E|LDGSTS\.E)\b[.\w]*\.128\b|\bUTMALDG\b")
WIDE_STORE = re.compile(r"\bSTG\.E\b[.\w]*\.128\b")


@dataclass(frozen=True)
class Build:
    """One specialisation for one architecture: resources from the binary, counts from its instructions.

    ``registers`` per thread; ``shared`` bytes per block, static and dynamic; ``stack`` bytes per thread, which is where spilled
    registers would be; ``mma``, ``wide_loads``, ``wide_stores``: tensor-core and 128-bit memory instructions in the code.
    """

    launch: Launch
    capability: int
    registers: int
    shared: int
    stack: int
    mma: int
    wide_loads: int
    wide_stores: int

    @property
    def label(self) -> str:
        """Kernel name and the constants that tell its specialisations apart."""
        return specialisation(self.launch)


def specialisation(launch: Launch) -> str:
    """A readable name, unique among the launches that compile to different code."""
    types = "-".join(sorted({t.lstrip("*") for _, t in launch.signature if t.startswith("*")} & {"fp32", "bf16", "fp16"}))
    constants = ",".join(f"{k}={v}" for k, v in launch.constants)
    return f"{launch.name}[{types};{constants};w{launch.num_warps}s{launch.num_stages}]"


def unique(launches: Iterable[Launch]) -> list[Launch]:
    """Launches that need code of their own: one of each, grids forgotten."""
    return list(dict.fromkeys(replace(launch, grid=()) for launch in launches))


def compile_launches(
    launches: Mapping[int, Iterable[Launch]], *, workers: int = 2, cache: Path | None = None
) -> list[Build]:
    """Compile the distinct launches of every capability; RuntimeError with the compiler's words if one fails."""
    jobs = [(launch, capability) for capability, recorded in launches.items() for launch in unique(recorded)]
    shares = [jobs[i::workers] for i in range(workers) if jobs[i::workers]]
    with ThreadPoolExecutor(max(len(shares), 1)) as pool:
        builds = [build for part in pool.map(lambda share: _run_worker(share, cache), shares) for build in part]
    return sorted(builds, key=lambda b: (b.launch.kernel, b.label, b.capability))


def _run_worker(jobs: list[tuple[Launch, int]], cache: Path | None) -> list[Build]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    request = json.dumps([{**asdict(launch), "capability": capability} for launch, capability in jobs])
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=request, capture_output=True, text=True, env=environment, check=False
    )
    builds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(builds) < len(jobs):
        launch, capability = jobs[len(builds)]
        raise RuntimeError(
            f"{specialisation(launch)} does not compile for sm_{capability} (exit status {done.returncode}):\n{done.stderr[-4000:]}"
        )
    return [Build(launch=_launch(b.pop("launch")), **b) for b in builds]


def _launch(fields: dict) -> Launch:
    """A launch from JSON, lists back to tuples."""
    pairs = {k: tuple(tuple(p) for p in fields[k]) for k in ("signature", "constants")}
    return Launch(**{**fields, **pairs, "aligned": tuple(fields["aligned"]), "grid": tuple(fields["grid"])})


def compile_cubin(launch: Launch, capability: int) -> tuple[bytes, int]:
    """The binary of one launch and its dynamic shared memory in bytes; call it in a process that does not interpret."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = launch.kernel.partition(":")
    function = getattr(importlib.import_module(module), name)
    order = [parameter for parameter, _ in launch.signature]
    source = ASTSource(
        fn=function,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(order.index(parameter),): [["tt.divisibility", 16]] for parameter in launch.aligned},
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return compiled.asm["cubin"], compiled.metadata.shared


def tool(name: str) -> str:
    """Path of ``cuobjdump`` or ``nvdisasm`` inside the installed Triton."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def inspect_cubin(cubin: bytes) -> dict[str, int]:
    """Registers, stack and static shared memory, and the instruction counts, of a binary with one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = subprocess.run([tool("cuobjdump"), "-res-usage", path], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "stack": found["STACK"] + found["LOCAL"],
        "shared": found["SHARED"],
        "mma": len(MMA.findall(sass)),
        "wide_loads": len(WIDE_LOAD.findall(sass)),
        "wide_stores": len(WIDE_STORE.findall(sass)),
    }


def build(launch: Launch, capability: int) -> Build:
    """Compile and inspect one specialisation."""
    cubin, dynamic_shared = compile_cubin(launch, capability)
    facts = inspect_cubin(cubin)
    return Build(launch, capability, **{**facts, "shared": facts["shared"] + dynamic_shared})


def main() -> None:
    """Worker: jobs as JSON on stdin, one line of JSON per build on stdout."""
    for job in json.load(sys.stdin):
        launch = _launch({k: v for k, v in job.items() if k != "capability"})
        print(json.dumps(asdict(build(launch, job["capability"]))), flush=True)


if __name__ == "__main__":
    main()
