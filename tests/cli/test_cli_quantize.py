"""``antiphon quantize`` from the command line: convert, calibrate, inspect, load; and every refusal in one line."""

from __future__ import annotations

import json
import shutil

import pytest

QUESTIONS = "examples/questions/manifest.jsonl"


@pytest.fixture(scope="module")
def manifest(demo, tmp_path_factory):
    """Two spoken questions, so that calibration is short."""
    from pathlib import Path

    source = Path(__file__).resolve().parents[2] / QUESTIONS
    folder = tmp_path_factory.mktemp("manifest")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    chosen = [row for row in rows if row["task"] == "chat"][:1] + [row for row in rows if row["task"] == "asr"][:1]
    for row in chosen:
        shutil.copyfile(source.parent / row["wav"], folder / row["wav"])
    path = folder / "two.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return path


def test_convert_and_inspect(run, demo, tmp_path):
    done = run("quantize", demo, tmp_path / "out", "--scheme", "int4", "--heads", "bfloat16")
    assert done.code == 0 and "layers int4, heads bfloat16, 0.011 GB → 0.006 GB" in done.out
    card = run("inspect", tmp_path / "out")
    assert card.code == 0 and "quantised: layers int4, heads bfloat16, rounded to nearest" in card.out


def test_calibrated(run, demo, tmp_path, manifest):
    """Other scales than without, recorded in the configuration, and the model still answers."""
    plain, aware = tmp_path / "plain", tmp_path / "aware"
    assert run("quantize", demo, plain, "--scheme", "int4").code == 0
    done = run("quantize", demo, aware, "--scheme", "int4", "--calibrate", manifest)
    assert done.code == 0, done.err
    recorded = json.loads((aware / "config.json").read_text())["quantization_config"]
    assert recorded["calibration"] == "two.jsonl"
    assert (aware / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    heard = run("transcribe", manifest.parent / rows[1]["wav"], "--model", aware, "--dtype", "float32")
    assert heard.code == 0 and rows[1]["reference"] in heard.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scheme", "int3"), "scheme 'int3': expected one of int8, int4"),
        (("--scheme", "int8", "--heads", "fp8"), "heads 'fp8': expected one of"),
        (("--scheme", "int8", "--calibrate", "none.jsonl"), "none.jsonl: cannot be read"),
    ],
)
def test_refusals_leave_nothing(run, demo, tmp_path, options, message):
    done = run("quantize", demo, tmp_path / "out", *options)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_converted_model_and_full_folder(run, demo, tmp_path):
    assert run("quantize", demo, tmp_path / "one", "--scheme", "int8").code == 0
    twice = run("quantize", tmp_path / "one", tmp_path / "two", "--scheme", "int8")
    assert twice.code == 2 and "converted already" in twice.err
    full = run("quantize", demo, tmp_path / "one", "--scheme", "int8")
    assert full.code == 2 and "not an empty folder" in full.err
