"""Quality of converted demo checkpoints on a few spoken questions; docs/quantisation.md has the whole evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from antiphon import KimiAudio, checkpoint
from antiphon.calibration import MAX_ROWS, Reservoir
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.evaluation import evaluate, read_manifest, summarise
from antiphon_kernels import count_calls
from antiphon_kernels.native import available

QUESTIONS = Path(__file__).resolve().parents[1] / "examples" / "questions" / "manifest.jsonl"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_questions_are_heard_and_answered(demo, tmp_path, scheme):
    quantize_checkpoint(checkpoint.load_model_config(demo), tmp_path / "out", scheme)
    model = KimiAudio(tmp_path / "out", load_detokenizer=False, device="cpu")
    rows = [row for row in read_manifest(QUESTIONS) if row.task == "chat"][:3]
    rows = [type(row)(**{**row.__dict__, "output_type": "text"}) for row in rows]
    with count_calls() as calls:
        report = summarise(evaluate(model, rows))
    assert report.answer_accuracy == 1.0 and report.plain.wer_all == 0.0
    layers = (*model.runtime.llm.trunk, *model.runtime.llm.upper)
    assert {m.scheme for layer in layers for m in (layer.qkv, layer.output, layer.gate_up, layer.down)} == {scheme}
    operator = calls[f"linear_{scheme}", "native" if available else "reference"]
    assert operator or calls["model_step", "native"]  # prompts
    assert calls["token_step", "native"] or not available


def test_a_reservoir_is_an_even_sample():
    """Every row that came is equally likely to be kept: the mean index of 20 samples is the middle."""
    import torch

    middle, count = [], 10 * MAX_ROWS
    for seed in range(20):
        kept = Reservoir(1, seed)
        for rows in torch.arange(count, dtype=torch.float32)[:, None].split(100):
            kept.add(rows)
        assert kept.rows.shape == (MAX_ROWS, 1)
        middle.append(kept.rows.float().mean().item())
    assert abs(sum(middle) / 20 / count - 0.5) < 0.02


def test_a_short_run_is_kept_whole():
    import torch

    kept = Reservoir(4, 0)
    kept.add(torch.ones(3, 4))
    kept.add(torch.zeros(0, 4))
    assert kept.rows.shape == (3, 4) and kept.rows.all()
