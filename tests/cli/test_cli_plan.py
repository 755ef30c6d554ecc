"""``antiphon plan`` on a small model: the report, the file, wrong names. The full size is in tests/planner."""

from __future__ import annotations

import json

import pytest

from antiphon.cli import main


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    arguments = ["plan", "--model", "nano", "--gpu", "l4", "--quant", "int8", "--streams", "4", "--no-compile"]
    assert main([*arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_everything_is_reported_and_called_projected(planned):
    assert planned["projected"] is True and planned["quant"] == "int8" and planned["fits"] is True
    parts = {part["name"]: part for part in planned["parts"]}
    assert {
        "whisper",
        "prefill",
        "decode speech 1",
        "captured decode speech 1",
        "mixed",
        "ODE steady 1",
        "vocoder 1",
    } <= set(parts)
    assert all(part["projected"] > part["roofline"] > 0 for part in parts.values())
    total = planned["memory"]["total"]
    assert total == sum(sum(planned["memory"][kind].values()) for kind in ("weights", "caches", "workspace"))
    assert planned["first_audio_seconds"]["total"] > 0


def test_operators_come_with_shapes_and_the_quantised_ones_are_used(planned):
    rows = planned["operators"]["decode speech 1"]
    names = {row["name"] for row in rows}
    assert "linear_int8" in names and "paged_attention" in names
    assert all(row["shapes"] and row["count"] >= 1 for row in rows)
    part = next(p for p in planned["parts"] if p["name"] == "decode speech 1")
    assert part["launches"] == sum(row["launches"] for row in rows)
    assert part["num_bytes"] == sum(row["bytes"] for row in rows)


def test_an_unknown_gpu_is_one_line(capsys):
    assert main(["plan", "--gpu", "h9000"]) == 2
    assert "h9000" in capsys.readouterr().err
