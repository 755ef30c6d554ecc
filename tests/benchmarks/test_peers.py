"""``benchmarks.peers`` as far as it goes without a peer: our side, the pairs, a worker's protocol, what a GGUF is made of."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import peer_models
from benchmarks.peer_models import Antiphon, Worker, hf_weights, text_only
from benchmarks.peers import check, pairs, row
from safetensors.torch import save_file

from antiphon.checkpoint.presets import PRESETS


@pytest.fixture(scope="module")
def config():
    """A Qwen2 of three small layers."""
    sizes = {"num_layers": 3, "num_trunk_layers": 2, "vocab_size": 211, "hidden_size": 128, "intermediate_size": 96}
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    return replace(text_only(PRESETS["0.5b"](Path()).llm), **sizes, **heads)


@pytest.fixture(scope="module")
def hf(config):
    """Its random weights."""
    return hf_weights(config)


@pytest.fixture(scope="module")
def qwen2_gguf():
    """The module beside the workers, imported as they do."""
    sys.path.insert(0, str(peer_models.WORKERS))
    import qwen2_gguf

    yield qwen2_gguf
    sys.path.remove(str(peer_models.WORKERS))


def test_our_steps_continue_our_prefill(config, hf):
    ours = Antiphon(config, hf, 2, 32)
    ids = torch.arange(1, 21).view(2, 10)
    at_once = ours.forward(ids, 0)
    for i in range(10):
        stepwise = ours.forward(ids[:, i : i + 1], i)
    assert at_once.shape == (2, config.vocab_size)
    assert (stepwise - at_once).float().abs().max() < 0.05 * at_once.float().abs().max()
    assert ours.prefill(16) > 0 and ours.decode(2, 8, 3) > 0


def test_pairs_alternate_after_a_warm_up_and_rows_take_medians():
    calls = []
    times = iter(range(100))
    found = pairs(*(lambda name=name: calls.append(name) or float(next(times)) for name in "ab"), repeats=2)
    assert calls == list("ababba") and found == [(2.0, 3.0), (5.0, 4.0)]
    line = row("decode", 4, "peer", [(1.0, 2.0), (2.0, 6.0), (4.0, 4.0)], 8)
    assert (line["antiphon"], line["peer"]) == (4.0, 2.0)
    assert (line["ratio_min"], line["ratio"], line["ratio_max"]) == (1.0, 2.0, 3.0)


FAKE = """
import json, sys
print("a library talks")
print(json.dumps({"peer": "fake", "version": "7"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "prompt" in request:
        print(json.dumps({"peer": "fake", "logits": sys.argv[1] + "/logits"}), flush=True)
    elif "prefill" in request:
        print(json.dumps({"peer": "fake", "seconds": request["prefill"] / 1000}), flush=True)
    else:
        sys.exit(3)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A peer whose interpreter is ours."""
    (tmp_path / "fake_worker.py").write_text(FAKE)
    monkeypatch.setattr(peer_models, "WORKERS", tmp_path)
    return Worker("fake", Path(sys.executable), tmp_path)


def test_a_worker_answers_and_its_end_is_an_error(worker):
    assert worker.version == "7" and worker.prefill(512) == 0.512
    with pytest.raises(RuntimeError, match="fake ended with 3"):
        worker.decode(1, 2, 3)
    worker.close()


def test_a_worker_is_stopped_between_requests(worker):
    def state() -> str:
        return Path(f"/proc/{worker._process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    for _ in range(2):
        os.waitid(os.P_PID, worker._process.pid, os.WSTOPPED | os.WNOWAIT)
        assert state() == "T"
        assert worker.prefill(8) == 0.008
    worker.close()


def test_another_model_is_found_out(worker, config, hf, tmp_path):
    ours = Antiphon(config, hf, 1, 64)
    logits = ours.forward(torch.arange(1, 33)[None], 0).float()
    logits.numpy().tofile(tmp_path / "logits")
    assert check(ours, worker) == 0
    logits.roll(1).numpy().tofile(tmp_path / "logits")
    with pytest.raises(AssertionError, match="fake runs another model"):
        check(ours, worker)
    worker.close()


def test_gguf_gets_every_weight(qwen2_gguf, hf, tmp_path):
    save_file(hf, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = qwen2_gguf.bfloat16_tensors(tmp_path / "model.safetensors")
    assert found.keys() == hf.keys()
    for name, values in found.items():
        assert np.array_equal(values, hf[name].view(torch.uint16).numpy()), name
    names = {qwen2_gguf.gguf_name(name) for name in hf}
    assert len(names) == len(hf)
    assert {"token_embd.weight", "blk.2.attn_k.bias", "blk.0.ffn_down.weight", "output_norm.weight"} <= names
    with pytest.raises(KeyError):
        qwen2_gguf.gguf_name("model.layers.0.self_attn.q_norm.weight")


def test_gguf_takes_no_other_dtype(qwen2_gguf, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(AssertionError, match="a: expected BF16, got F32"):
        qwen2_gguf.bfloat16_tensors(tmp_path / "model.safetensors")
