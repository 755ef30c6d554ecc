"""Packing never holds two full copies: peak memory of a fresh process against the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from antiphon.checkpoint.presets import nano
from antiphon.checkpoint.synthetic import write_checkpoint
from antiphon_kernels import native

SLACK = 24e6
MEASURE = """
import json, sys, torch
from antiphon import checkpoint

def peak(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) * 1024

config = checkpoint.load_model_config(sys.argv[1])
load, dtype = getattr(checkpoint, sys.argv[2]), getattr(torch, sys.argv[3])
load(config, dtype, "meta")
torch.ones(8, dtype=torch.float16).to(dtype)
before = peak("VmRSS")
weights = load(config, dtype, "cpu", *map(json.loads, sys.argv[4:]))
size = sum(w.numel() * w.element_size() for w in weights.values())
print(json.dumps({"size": size, "growth": peak("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Language model and DiT of some 120 MB each, no tensor above 4 MB."""
    small = nano()
    llm = replace(small.llm, hidden_size=512, head_dim=128, intermediate_size=2048, num_layers=12, num_audio_layers=4)
    config = replace(small, llm=llm, flow=replace(small.flow, hidden_size=512, depth=12, num_heads=4))
    path = tmp_path_factory.mktemp("memory") / "model"
    write_checkpoint(config, path)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("part", "dtype"), [("load_llm", "bfloat16"), ("load_llm", "float32"), ("load_flow", "bfloat16")]
)
def test_peak_is_one_copy(folder, part, dtype):
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), part, dtype], capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout)
    budget = seen["size"] + SLACK
    print(
        f"{part} {dtype}: {seen['growth'] / budget:.2f} of the budget, {seen['growth'] / seen['size']:.2f} of the size"
    )
    assert seen["size"] > 90e6
    assert seen["growth"] < budget


@pytest.mark.skipif(not native.available, reason="native module not built")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.78), ("float32", 0.4)])
def test_compact_weights_never_stand_beside_a_plain_copy(folder, dtype, most):
    """Of the plain model, 129 MB in bfloat16, one matrix of at most 4 MB is held at a time."""
    argv = [sys.executable, "-c", MEASURE, str(folder), "load_llm", dtype]
    plain, compact = (
        json.loads(subprocess.run([*argv, chosen], capture_output=True, text=True, check=True).stdout)
        for chosen in ("false", "true")
    )
    budget = compact["size"] + SLACK
    print(f"compact: {compact['growth'] / budget:.2f} of the budget")
    assert compact["size"] < most * plain["size"]
    assert compact["growth"] < budget < 0.6 * (compact["size"] + plain["size"])


def test_weights_do_not_alias_the_file(nano_folder):
    from antiphon import checkpoint

    config = checkpoint.load_model_config(nano_folder)
    weights = checkpoint.load_speech_tokenizer(config, torch.float32)
    weights["codebook"].zero_()
    assert checkpoint.load_speech_tokenizer(config, torch.float32)["codebook"].any()
