"""A converted model of the released size in little memory: ``python -m benchmarks.large_model [--json OUT]``.

Writes a converted checkpoint with random integers, tensor by tensor (7 GB for int4), then loads and decodes it in a process of its
own: peak resident memory, milliseconds per step and the weights' bytes per second, every step with both heads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from antiphon import checkpoint
from antiphon.checkpoint.official_files import write_config_files
from antiphon.checkpoint.packing import Named
from antiphon.checkpoint.presets import PRESETS
from antiphon.checkpoint.quantize import SCHEMES
from antiphon.checkpoint.quantized import packed_specs
from antiphon.checkpoint.safetensors_files import SINGLE
from antiphon.checkpoint.safetensors_writer import Specs, write_tensors
from antiphon.config import QuantizationConfig
from antiphon.execution.kv_cache import allocate, sizes_for
from antiphon.models.dual_qwen import DualQwen
from antiphon_kernels.native import bind_model_step, status

from .cpu_decode import step_layout
from .report import add_json_option, publish, table

COLUMNS = ("model", "scheme", "file_gb", "load_s", "first_step_s", "step_ms", "steps_per_s", "gb_per_s", "peak_rss_gib")
CONTEXT = 64


def write(preset: str, scheme: str, folder: Path) -> None:
    """A converted language model with random weights; the other parts are configuration files only."""
    config = PRESETS[preset](folder)
    quantization = QuantizationConfig(*SCHEMES[scheme], None, {})
    folder.mkdir(parents=True)
    specs = packed_specs(config.llm, quantization)
    digest = write_tensors(folder / SINGLE, specs, _random(specs))
    write_config_files(config, folder)
    path = folder / "config.json"
    values = json.loads(path.read_text()) | {
        "quantization_config": replace(quantization, sha256={SINGLE: digest}).to_json()
    }
    path.write_text(json.dumps(values))


def measure(folder: Path, steps: int) -> dict:
    """Load and decode in this process."""
    start = time.perf_counter()
    config = checkpoint.load_model_config(folder)
    weights = checkpoint.load_llm(config, torch.bfloat16)
    c, load_s = config.llm, time.perf_counter() - start
    model, kv = DualQwen(c, weights), allocate(c, sizes_for(c, CONTEXT), torch.bfloat16, torch.device("cpu"))
    step = bind_model_step(model, kv.trunk, kv.upper, c.num_text_layers, c.num_audio_layers)
    layout, ids = step_layout(1, CONTEXT), torch.zeros(1, dtype=torch.int64)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step(ids, ids, layout)
        times.append(time.perf_counter() - start)
    first, seconds = times[0], sorted(times[1:])[steps // 2]
    read = sum(w.numel() * w.element_size() for name, w in weights.items() if not name.startswith(("embed", "adaptor")))
    return {
        "file_gb": (folder / SINGLE).stat().st_size / 1e9, "load_s": load_s, "first_step_s": first, "step_ms": 1e3 * seconds,
        "steps_per_s": 1 / seconds, "gb_per_s": read / seconds / 1e9, "peak_rss_gib": _peak_rss() / 2**30,
    }  # fmt: skip


def main() -> None:
    """Parse; write, measure in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="7b")
    parser.add_argument("--scheme", choices=SCHEMES, default="int4")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where the model is kept")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the second process
    add_json_option(parser)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.steps)))
        return
    folder = options.work / f"antiphon-{options.preset}-{options.scheme}"
    if not (folder / "config.json").exists():
        write(options.preset, options.scheme, folder)
    command = [sys.executable, "-m", __spec__.name, "--measure", str(folder), "--steps", str(options.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [{"model": options.preset, "scheme": options.scheme} | json.loads(done.stdout.splitlines()[-1])]
    print(table(rows, COLUMNS))
    publish("large_model", rows, options.json, native=status(), context=CONTEXT)


def _random(specs: Specs) -> Iterator[Named]:
    generator = torch.Generator().manual_seed(0)
    for name, (shape, dtype) in specs.items():
        if name.endswith(".scale"):
            scale = (128 * shape[-2]) ** -0.5 / 4 if dtype == torch.bfloat16 else 1e-4
            yield name, torch.full(shape, scale, dtype=dtype)
        elif dtype.is_floating_point:
            spread = 1.0 if name == "embed" else 0.02
            yield name, torch.empty(shape, dtype=dtype).normal_(0.0, spread, generator=generator)
        else:
            low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
            yield name, torch.empty(shape, dtype=dtype).random_(low, high + 1, generator=generator)


def _peak_rss() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
