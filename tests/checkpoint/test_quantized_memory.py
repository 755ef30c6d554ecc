"""A converted model stays mapped from its file, or is copied once: memory of a fresh process that loads it and touches every weight."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from antiphon import checkpoint
from antiphon.checkpoint.presets import nano
from antiphon.checkpoint.quantize import quantize_checkpoint
from antiphon.checkpoint.synthetic import write_checkpoint

SLACK = 24e6
MEASURE = """
import json, sys, torch
from antiphon import checkpoint
from antiphon.checkpoint import quantized

def memory(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) * 1024

quantized.has_large_pages = lambda: True
quantized.MappedFile.in_large_pages = lambda file: sys.argv[2] == "mapped"
config = checkpoint.load_model_config(sys.argv[1], load_detokenizer=False)
checkpoint.load_llm(config, torch.bfloat16, "meta")
torch.ones(1 << 20, dtype=torch.uint8).max()
before, private = memory("VmRSS"), memory("RssAnon")
weights = checkpoint.load_llm(config, torch.bfloat16)
for weight in weights.values():
    weight.flatten().view(torch.uint8).max()
size = sum(w.numel() * w.element_size() for w in weights.values())
print(json.dumps({"size": size, "growth": memory("VmHWM") - before, "private": memory("RssAnon") - private}))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A language model of some 130 MB without a voice."""
    small = nano()
    llm = replace(small.llm, hidden_size=512, head_dim=128, intermediate_size=2048, num_layers=12, num_audio_layers=4)
    path = tmp_path_factory.mktemp("memory") / "model"
    write_checkpoint(replace(small, llm=llm, flow=None, vocoder=None), path)
    return path


@pytest.mark.parametrize("pages", ["mapped", "copied"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_one_copy(official, tmp_path, scheme, pages):
    config = checkpoint.load_model_config(official, load_detokenizer=False)
    quantize_checkpoint(config, tmp_path / "out", scheme)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "out"), pages], capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout)
    budget = seen["size"] + SLACK
    print(f"{scheme}, {pages}: {seen['growth'] / budget:.2f} of the budget; private {seen['private'] / 1e6:.1f} MB")
    assert seen["size"] > 30e6
    assert seen["growth"] < budget
    if pages == "mapped":
        assert seen["private"] < SLACK  # the weights are pages of the file, not copies
    else:
        assert seen["private"] > 0.5 * seen["size"]  # all but the embedding lies in memory of its own
