"""The language model against golden prefill arrays and greedy streams, and the work that it skips."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from antiphon.prompt import make_prompt
from antiphon.request import SamplingParams, sampling_params
from antiphon.solo import SoloRun
from antiphon_kernels.linear_weight import dequantize_weight

PREFILL = ("text_only", "audio_only", "multi_turn_audio")


@pytest.fixture(scope="module")
def prompts(golden):
    return {p["name"]: p["messages"] for p in json.loads((golden / "prompts.json").read_text())}


@pytest.fixture(scope="module")
def build(tiny_runtime, prompts, recordings):
    """Prompt of a golden conversation; skips where its recordings are not here."""

    def make(name, output_type="text"):
        recordings(prompts[name])
        return make_prompt(prompts[name], output_type, tiny_runtime.builder, tiny_runtime.encoder, recordings.folder)

    return make


def budget(what, error, tolerance):
    """Assert an absolute error and print the share of its budget."""
    print(f"{what}: {error / tolerance:.3f} of the error budget")
    assert error <= tolerance, f"{what}: {error} exceeds {tolerance}"


@pytest.mark.parametrize("name", PREFILL)
def test_prefill_matches_golden(tiny_runtime, build, golden, name):
    arrays = np.load(golden / "llm_prefill.npz")
    want = {key.partition(".")[2]: arrays[key] for key in arrays.files if key.startswith(f"{name}.")}
    prompt = build(name)
    states = {}
    run = SoloRun(tiny_runtime.llm, prompt, SamplingParams(max_new_tokens=1), 0, both_heads=True)
    output = next(run.steps(keep_logits=True, observe=lambda key, x: states.__setitem__(key, x))).output
    n, config = len(prompt), tiny_runtime.config.llm
    budget("inputs_embeds", np.abs(states["embed"].numpy() - want["inputs_embeds"]).max(), 5e-4)
    text = [states["embed"], *(states[f"trunk.{i}"] for i in range(config.num_trunk_layers))]
    text += [states[f"upper.{j}"][:n] for j in range(config.num_text_layers)]
    audio = [states[f"upper.{j}"][n:] for j in range(config.num_audio_layers)]
    for key, layers in (("hidden", text), ("mimo_hidden", audio)):
        stack = torch.stack(layers).numpy()
        budget(key, np.abs(stack[:, ::4] - want[key]).max(), 2e-3)
        budget(f"{key}_last", np.abs(stack[:, -1] - want[f"{key}_last"]).max(), 2e-3)
    budget("text logits", np.abs(output.text_logits[0].numpy() - want["text_logits_last"]).max(), 3e-3)
    budget("audio logits", np.abs(output.audio_logits[0].numpy() - want["audio_logits_last"]).max(), 3e-3)
    heads = states[f"upper.{config.num_text_layers - 1}"].unflatten(0, (2, n))
    for which, key, matrix in ((0, "text", "lm_head"), (1, "audio", "audio_head")):
        check_all_positions(tiny_runtime, heads[which], which, matrix, key, want)


def check_all_positions(runtime, hidden, branch, matrix, key, want):
    """Logits of every position: arg max, the eight best, logsumexp and a slice."""
    norm = runtime.llm.final_norm[branch]
    x = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + runtime.config.llm.rms_norm_eps) * norm
    weight, codes = runtime.llm.weights[matrix], runtime.llm.weights.get(f"{matrix}.scale")
    logits = x @ (weight if codes is None else dequantize_weight(weight, codes, torch.float32)).T
    best = logits.topk(2)
    clear = (best.values[:, 0] - best.values[:, 1]).numpy() > 5e-3
    assert (best.indices[:, 0].numpy() == want[f"{key}_argmax"])[clear].all()
    eight = logits.gather(1, torch.from_numpy(want[f"{key}_top8_ids"]).long())
    budget(f"{key} top8", np.abs(eight.numpy() - want[f"{key}_top8_logits"]).max(), 3e-3)
    budget(f"{key} logsumexp", np.abs(logits.logsumexp(-1).numpy() - want[f"{key}_logsumexp"]).max(), 3e-3)
    budget(f"{key} slice", np.abs(logits[:, ::16].numpy() - want[f"{key}_logits_slice"]).max(), 3e-3)


@pytest.mark.parametrize("name", PREFILL)
def test_cache_of_the_last_position_matches_golden(tiny_runtime, build, golden, name):
    arrays = np.load(golden / "llm_prefill.npz")
    prompt = build(name)
    run = SoloRun(tiny_runtime.llm, prompt, SamplingParams(max_new_tokens=1), 0, both_heads=True)
    next(run.steps())
    kv, last = run.runner.kv, len(prompt) - 1
    audio_page = kv.upper.shape[2] // 2
    places = [kv.trunk[:, :, last // 16, last % 16], kv.upper[:, :, last // 16, last % 16]]
    places.append(kv.upper[:, :, audio_page + last // 16, last % 16])
    got = torch.cat(places).numpy()
    budget("keys", np.abs(got[:, 0] - arrays[f"{name}.last_k"]).max(), 2e-3)
    budget("values", np.abs(got[:, 1] - arrays[f"{name}.last_v"]).max(), 2e-3)


RUNS = [f"run{i:02d}" for i in range(32)]


@pytest.mark.parametrize("name", RUNS)
def test_greedy_streams_match_golden(tiny_runtime, build, golden, name):
    run = next(r for r in json.loads((golden / "llm_greedy.json").read_text()) if r["run"] == name)
    arrays = np.load(golden / "llm_greedy.npz")
    prompt = build(run["prompt"], run["output_type"])
    assert len(prompt) == run["prompt_length"]
    limit = -1 if run["entry"] == "generate" else run["max_new_tokens"]
    sampling = sampling_params(max_new_tokens=limit, **run["sampling"])
    keep = f"{name}.logit_steps" in arrays
    solo = SoloRun(tiny_runtime.llm, prompt, sampling, 0)
    steps = list(solo.steps(keep_logits=keep))
    assert [s.text for s in steps] == arrays[f"{name}.text_stream"].tolist()
    assert [s.audio for s in steps] == arrays[f"{name}.audio_stream"].tolist()
    assert steps[-1].stop.name.lower() == run["stop"]
    if keep:
        check_step_logits(steps, arrays, name, run["output_type"])
    check_skipped_work(solo, steps, prompt, tiny_runtime.config.llm)


def check_step_logits(steps, arrays, name, output_type):
    for k, i in enumerate(arrays[f"{name}.logit_steps"]):
        for stream in ("text", "audio"):
            logits = getattr(steps[i].output, f"{stream}_logits")
            if len(logits):
                want = arrays[f"{name}.{stream}_logits"][k]
                budget(f"{stream} logits, step {i}", np.abs(logits[0].numpy() - want).max(), 3e-3)


def check_skipped_work(solo, steps, prompt, config):
    """Only what the request needed was computed: branch rows and heads, counted."""
    counters, n = solo.runner.counters, len(steps)
    both = prompt.output_type == "both"
    rows = len(prompt) + n - 1
    eos = [i for i, s in enumerate(steps) if s.text == config.special.text_eos]
    text_steps = eos[0] + 1 if both and eos else n
    assert counters.trunk_rows == rows
    assert counters.text_rows == len(prompt) + text_steps - 1
    assert counters.text_heads == text_steps
    assert counters.audio_rows == (rows if both else 0)
    assert counters.audio_heads == (max(0, n - config.audio_delay) if both else 0)
