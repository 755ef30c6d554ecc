"""Through HTTP and Realtime as offline: transcripts, answers, and what is heard of the spoken answers (a part of the evaluation)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "examples/questions/manifest.jsonl"


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Two transcriptions and four spoken questions."""
    lines = [json.loads(line) for line in MANIFEST.read_text().splitlines()]
    chosen = [row for row in lines if row["task"] == "asr"][:2] + [row for row in lines if row["task"] == "chat"][:4]
    path = tmp_path_factory.mktemp("round_trip") / "manifest.jsonl"
    path.write_text("".join(json.dumps(row | {"wav": str(MANIFEST.parent / row["wav"])}) + "\n" for row in chosen))
    return path


def run(*options):
    command = [sys.executable, "-m", "benchmarks.serve_round_trip", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


def test_what_is_heard_through_the_server_is_what_is_heard_offline(demo_server, demo, part, tmp_path):
    pytest.importorskip("websockets")
    pytest.importorskip("jiwer", reason="the extra 'eval' is not installed")
    out, state = tmp_path / "out.json", tmp_path / "state.jsonl"
    options = ("--url", demo_server.url, "--offline", demo, "--manifest", part, "--state", state, "--json", out)
    unfinished = run(*options, "--seconds", "0.1")
    assert unfinished.returncode == 3, unfinished.stderr
    done = run(*options)
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {"offline", "offline 24 kHz", "http", "realtime"}
    for way in ("http", "realtime"):
        row, offline = rows[way], rows["offline 24 kHz" if way == "realtime" else "offline"]
        assert row["recordings"] == row["same_transcripts"] == 6 and row["questions"] == row["same_answers"] == 4
        assert row["right"] == 1.0 and row["heard_exact"] >= offline["heard_exact"] - 0.25, "as often but for one answer"
    demo_server.idle()
