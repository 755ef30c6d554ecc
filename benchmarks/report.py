"""What every benchmark row carries, and how rows are printed: a table for people first, one JSON line last."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Device, versions, commit, dirty flag and the command that reproduces the run."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
    }


def cpu_name() -> str:
    """Model name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Rows as right-aligned columns; floats with three digits that count, a missing value empty."""
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def publish(name: str, rows: Sequence[dict[str, Any]], out: Path | None, **more: Any) -> None:
    """Print one JSON line with the rows and the environment, and write it to ``out``."""
    line = json.dumps({"benchmark": name, **environment(), **more, "rows": list(rows)})
    if out is not None:
        out.write_text(line + "\n", encoding="utf-8")
    print(line)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json OUT``."""
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the JSON line to this file")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name
