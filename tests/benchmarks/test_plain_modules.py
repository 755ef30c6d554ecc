"""The benchmarks' yardsticks compute what our models compute, or a ratio would compare two different things."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.peer_models import Antiphon, Transformers, Worker, hf_weights, same_logits, text_only
from benchmarks.plain_modules import PlainDit, PlainLlm, PlainVocoder
from speech_models import load_speech

from antiphon.checkpoint import load_llm
from antiphon.checkpoint.presets import half_billion
from antiphon.models.flow_dit import FlowBatch, FlowWindow
from antiphon.request import SamplingParams
from antiphon.solo import SoloRun

CPU = torch.device("cpu")


def test_vocoder(tiny):
    _, ours = load_speech(tiny)
    mel = torch.randn(1, 9, ours.config.num_mels)
    torch.testing.assert_close(PlainVocoder(ours.config, ours.weights)(mel), ours(mel), atol=1e-5, rtol=0)


def test_dit_with_a_cache(tiny):
    ours, _ = load_speech(tiny)
    c, rows, cached = ours.config, 8, 12
    window = FlowWindow.empty(c, 1, 16, torch.float32, CPU)
    window.keys.normal_(), window.values.normal_()
    x, tokens, positions = torch.randn(rows, c.num_mels), torch.arange(2), torch.arange(cached, cached + rows)
    starts, lens = torch.tensor([0, rows], dtype=torch.int32), torch.tensor([cached], dtype=torch.int32)
    batch = FlowBatch(tokens, positions, starts, torch.zeros(1, dtype=torch.int64), lens, rows)
    wanted = ours.velocity(x, ours.time_table([517])[0], ours.condition(tokens), batch, window)
    plain = PlainDit(c, ours.weights)
    cache = [(k[0, :cached].transpose(0, 1), v[0, :cached].transpose(0, 1)) for k, v in zip(window.keys, window.values)]
    condition = plain.time(517) + ours.condition(tokens).repeat_interleave(4, 0)
    torch.testing.assert_close(plain(x, condition, positions, cache)[0], wanted, atol=1e-4, rtol=0)


def test_language_model_step_by_step(tiny_runtime):
    from antiphon.prompt import make_prompt

    message = {"role": "user", "message_type": "text", "content": "hello"}
    prompt = make_prompt([message], "both", tiny_runtime.builder, tiny_runtime.encoder)
    solo = SoloRun(tiny_runtime.llm, prompt, SamplingParams(max_new_tokens=3), 0, both_heads=True)
    plain, ids = PlainLlm(tiny_runtime.config.llm, load_llm(tiny_runtime.config, torch.float32)), (prompt.audio_ids, prompt.text_ids)
    for step in solo.steps(keep_logits=True):
        x = tiny_runtime.llm.embed(*ids, None, torch.full_like(ids[0], -1))
        for got, want in zip(plain(x), (step.output.text_logits, step.output.audio_logits)):
            torch.testing.assert_close(got, want[0], atol=2e-4, rtol=0)
        ids = torch.tensor([step.audio]), torch.tensor([step.text])


def test_transformers_and_we_run_one_model():
    pytest.importorskip("transformers")
    c = replace(half_billion(Path()).llm, hidden_size=256, intermediate_size=256, num_heads=2, num_kv_heads=1)
    c = text_only(replace(c, num_layers=3, num_trunk_layers=2, vocab_size=2000))
    hf = hf_weights(c)
    ours, theirs = Antiphon(c, hf, max_batch=2, max_len=40), Transformers(c, hf)
    assert same_logits(ours, theirs, range(1, 20)) < 0.02
    assert ours.decode(2, 16, 2) > 0 and theirs.decode(2, 16, 2) > 0 and ours.prefill(32) > 0


def test_a_peer_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Requests as JSON lines in, answers among other output; an end that nobody asked for is an error with a name."""
    stub = """
import json, sys
print("starting", json.dumps({"version": "other"}))
print(json.dumps({"peer": "stub", "version": "1.2"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request.get("steps") == 0:
        sys.exit(3)
    print(json.dumps({"peer": "stub", "seconds": float(request.get("prefill", 0)) or request["batch"] / 10}), flush=True)
"""
    (tmp_path / "stub_worker.py").write_text(stub)
    monkeypatch.setattr("benchmarks.peer_models.WORKERS", tmp_path)
    peer = Worker("stub", Path(sys.executable), tmp_path)
    assert peer.version == "1.2" and peer.prefill(7) == 7.0 and peer.decode(4, 16, 2) == 0.4
    with pytest.raises(RuntimeError, match="stub ended with 3"):
        peer.decode(1, 1, 0)
    peer.close()
