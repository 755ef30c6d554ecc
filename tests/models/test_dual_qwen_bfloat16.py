"""The language model in bfloat16, golden streams forced: agreement wherever a margin decides (fixtures README)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from antiphon import checkpoint
from antiphon.execution.decode_state import DecodeState
from antiphon.execution.kv_cache import allocate, sizes_for
from antiphon.execution.llm_runner import LlmRunner
from antiphon.execution.step_batch import StepBatch
from antiphon.models.dual_qwen import DualQwen
from antiphon.prompt import make_prompt
from antiphon.solo import adapted_features

MARGIN, SHARE = 1.0, 0.90


@pytest.fixture(scope="module")
def model(tiny):
    config = checkpoint.load_model_config(tiny)
    return DualQwen(config.llm, checkpoint.load_llm(config, torch.bfloat16))


def forced_logits(model, prompt, text, audio):
    """Logits of both heads from the last prompt position on, the streams forced, in one pass: float32 [steps, V] each."""
    n, p = len(text), len(prompt)
    length = p + n - 1
    sizes = sizes_for(model.config, length)
    cpu = torch.device("cpu")
    runner = LlmRunner(model, allocate(model.config, sizes, torch.bfloat16, cpu), DecodeState(model.config, 1, cpu))
    pages = np.arange(sizes.trunk, dtype=np.int32)[None]
    states = {}
    runner.run(
        StepBatch(
            slots=np.array([0]),
            starts=np.array([0]),
            lengths=np.array([length]),
            samples=np.array([False]),
            steps=np.array([0]),
            run_text=np.array([True]),
            run_audio=np.array([True]),
            audio_ids=np.concatenate((prompt.audio_ids.numpy(), audio[:-1])),
            text_ids=np.concatenate((prompt.text_ids.numpy(), text[:-1])),
            feature_rows=np.concatenate((prompt.feature_rows.numpy(), np.full(n - 1, -1))),
            features=adapted_features(model, prompt),
            tables=(pages, pages, pages + sizes.text),
        ),
        observe=states.__setitem__,
    )
    hidden = states[f"upper.{model.num_upper_layers - 1}"].unflatten(0, (2, length))[:, p - 1 :].float()
    scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + model.config.rms_norm_eps)
    normed = ((hidden * scale).bfloat16() * model.final_norm[:, None]).to(torch.bfloat16)
    heads = (model.lm_head.weight[0], model.audio_head.weight[0])
    return [(rows @ head.T).float() for rows, head in zip(normed, heads, strict=True)]


def test_forced_streams_agree_wherever_the_margin_decides(model, tiny_runtime, golden, recordings):
    arrays = np.load(golden / "llm_greedy.npz")
    conversations = {p["name"]: p["messages"] for p in json.loads((golden / "prompts.json").read_text())}
    same = total = 0
    for run in json.loads((golden / "llm_greedy.json").read_text()):
        plain = run["sampling"]["text_repetition_penalty"] == run["sampling"]["audio_repetition_penalty"] == 1.0
        messages = conversations[run["prompt"]]
        if not plain or run["steps"] > 300 or not recordings.has(messages):
            continue
        prompt = make_prompt(
            messages, run["output_type"], tiny_runtime.builder, tiny_runtime.encoder, recordings.folder
        )
        text, audio = (arrays[f"{run['run']}.{name}_stream"].astype(np.int64) for name in ("text", "audio"))
        for name, logits in zip(("text", "audio"), forced_logits(model, prompt, text, audio), strict=True):
            assert torch.isfinite(logits).all()
            agree = logits.argmax(-1).numpy() == arrays[f"{run['run']}.{name}_argmax"]
            clear = arrays[f"{run['run']}.{name}_gap"] > MARGIN
            assert agree[clear].all(), f"{run['run']} {name}: steps {np.flatnonzero(clear & ~agree)} differ"
            same, total = same + agree.sum(), total + len(agree)
    print(f"agreement {same / total:.4f} of {total} decisions, demanded {SHARE}")
    assert total > 500 and same / total >= SHARE
