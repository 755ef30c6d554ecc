"""The load generator against a live server: mixed load, clients that leave, nothing left behind, memory flat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from live import live

from antiphon.null_engine import NullSpec

ROOT = Path(__file__).resolve().parents[2]


def load(tmp_path, *options):
    """Rows of a run by scenario; everything that must not happen fails it."""
    pytest.importorskip("websockets")
    out = tmp_path / "load.json"
    command = [sys.executable, "-m", "benchmarks.serve_load", "--json", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {row["scenario"]: row for row in json.loads(out.read_text())["rows"]}


def memory():
    """Resident bytes of this process, which holds server and engine."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_mixed_load(demo_server, tmp_path):
    plot = tmp_path / "load.png"
    options = ("--scenario", "mixed", "--concurrency", "6", "--seconds", "8", "--plot", str(plot))
    rows = load(tmp_path, "--url", demo_server.url, *options)
    assert set(rows) == {"asr", "chat", "realtime"} and plot.stat().st_size > 5000
    for row in rows.values():
        assert row["errors"] == 0 and row["requests"] > 0, row
    assert 0 <= rows["chat"]["viability"] <= 1 and rows["chat"]["ttfa_p50"] > 0
    demo_server.idle()


def test_half_of_the_clients_leave(demo_server, tmp_path):
    options = ("--url", demo_server.url, "--phases", "leave", "--seconds", "6", "--clients", "chat=3,asr=1,realtime=2")
    load(tmp_path, *options)
    demo_server.idle()
    before = memory()
    rows = load(tmp_path, *options, "--seed", "1")
    assert rows["chat"]["left"] > 0 and rows["left behind"]["pages_trunk"] == 0
    assert memory() < 1.15 * before
    engine = demo_server.service.engine
    assert engine.num_in_flight == 0 and engine.num_deaths == 0
    assert all(pages["used"] == 0 for pages in engine.statistics.pages.values()), engine.statistics.pages


def test_a_server_of_its_own_is_watched(tmp_path):
    """The acceptance test in short: the engine in its own process, both processes' memory, nothing left behind."""
    load(
        tmp_path, "--serve", str(ROOT / "examples/demo_model"), "--clients", "chat=3,realtime=2", "--turns", "2",
        "--phases", "steady,leave", "--seconds", "3,5",
    )  # fmt: skip
    report = json.loads((tmp_path / "load.json").read_text())
    assert {row["process"] for row in report["memory"]} == {"engine", "server"} and not report["failures"]
    assert report["rows"][-1]["tasks"] == report["rows"][-1]["pages_audio"] == 0


def test_a_flood_is_refused_beside_a_full_load(tmp_path):
    with live(NullSpec(steps=30, step_seconds=0.01), served_name="null", max_in_flight=3) as server:
        options = ("--clients", "text=3", "--rate", "60", "--phases", "flood", "--seconds", "3", "--lenient")
        rows = load(tmp_path, "--url", server.url, *options)
        failures = json.loads((tmp_path / "load.json").read_text())["failures"]
        assert rows["slowdown"]["refused"] > 20 and not any("error" in failure for failure in failures)
        server.idle()


def test_poisson_arrivals(null_server, tmp_path):
    rows = load(tmp_path, "--url", null_server.url, "--scenario", "text", "--rate", "20", "--seconds", "4")
    assert rows["text"]["errors"] == 0 and 30 < rows["text"]["requests"] < 150
