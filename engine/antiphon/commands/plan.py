"""``antiphon plan``: rehearse the engine for a GPU that is not there, and say what to expect of it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

SCHEMES = ("int8", "int4", "fp8")


def add(subparsers) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="rehearse on a GPU that is not there",
        description="Run the full-size engine on a fake CUDA device; compile its kernels for that GPU; project times and memory.",
    )
    parser.add_argument(
        "--model", default="7b", metavar="7b|DIR", help="a size by name, or a folder (default: %(default)s)"
    )
    parser.add_argument(
        "--gpu", default="h100", metavar="NAME", help="h100, h200, a100, l4, rtx4090, b200 (default: %(default)s)"
    )
    parser.add_argument("--quant", choices=SCHEMES, help="scheme of the language model's matrices (default: bfloat16)")
    parser.add_argument(
        "--streams", type=int, default=64, metavar="N", help="speakers to plan memory for (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write everything there, every operator with its shapes"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the kernels uncompiled")
    parser.add_argument(
        "--warm", type=Path, metavar="DIR", help="keep the compiled kernels there: set TRITON_CACHE_DIR to it, ANTIPHON_CUBIN_DIR to its folder cubin"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..planner.gpus import gpu
    from ..planner.plan_kernels import compile_cuda_sources, compile_kernels, kernel_lines
    from ..planner.rehearsal import rehearse
    from ..planner.report import json_report, project, text_report

    began = time.perf_counter()
    spec, config = gpu(arguments.gpu), _config(arguments.model)
    rehearsal = rehearse(config, spec, quant=arguments.quant)
    projection = project(rehearsal, spec, arguments.quant, arguments.streams)
    print(text_report(projection), flush=True)
    report = json_report(projection, rehearsal)
    if arguments.compile:
        builds = [*compile_kernels(rehearsal.kernels, spec, arguments.warm), *compile_cuda_sources(spec, arguments.warm)]
        print("\n" + "\n".join(kernel_lines(builds)))
        keys = ("label", "capability", "registers", "shared", "stack", "wide_loads")
        report["kernels"] = [{k: getattr(b, k) for k in keys} | {"mma": getattr(b, "mma", 0)} for b in builds]
    report["seconds"] = time.perf_counter() - began
    print(f"\ntook {report['seconds']:.0f} s on this CPU")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _config(model: str):
    """A preset by its name, else a folder."""
    from .. import checkpoint
    from ..checkpoint.presets import PRESETS

    return PRESETS[model](Path(model)) if model in PRESETS else checkpoint.load_model_config(model)
