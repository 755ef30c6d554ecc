"""The load generator against a live server: mixed load, clients that leave, nothing left behind, memory flat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(server, tmp_path, *options):
    pytest.importorskip("websockets")
    out = tmp_path / "load.json"
    command = [sys.executable, "-m", "benchmarks.serve_load", "--url", server.url, "--json", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {row["scenario"]: row for row in json.loads(out.read_text())["rows"]}


def memory():
    """Resident bytes of this process, which holds server and engine."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_mixed_load(demo_server, tmp_path):
    plot = tmp_path / "load.png"
    rows = load(demo_server, tmp_path, "--scenario", "mixed", "--concurrency", "6", "--seconds", "8", "--plot", str(plot))
    assert set(rows) == {"asr", "chat", "realtime"} and plot.stat().st_size > 5000
    for row in rows.values():
        assert row["errors"] == 0 and row["requests"] > 0, row
    assert 0 <= rows["chat"]["viability"] <= 1 and rows["chat"]["ttfa_p50"] > 0
    demo_server.idle()


def test_half_of_the_clients_leave(demo_server, tmp_path):
    options = ("--scenario", "mixed", "--concurrency", "6", "--seconds", "6", "--hangup", "0.5")
    rows = load(demo_server, tmp_path, *options)
    assert sum(row["left"] for row in rows.values()) > 0
    assert all(row["errors"] == 0 for row in rows.values()), rows
    demo_server.idle()
    before = memory()
    load(demo_server, tmp_path, *options, "--seed", "1")
    demo_server.idle()
    assert memory() < 1.15 * before
    engine = demo_server.service.engine
    assert engine.num_in_flight == 0 and engine.num_deaths == 0
    assert all(pages["used"] == 0 for pages in engine.statistics.pages.values()), engine.statistics.pages


def test_poisson_arrivals(null_server, tmp_path):
    rows = load(null_server, tmp_path, "--scenario", "text", "--rate", "20", "--seconds", "4")
    assert rows["text"]["errors"] == 0 and 30 < rows["text"]["requests"] < 150
