"""The packed, paged, branch-batched model against plain layers over the official tensors, for unequal branch depths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from antiphon import checkpoint
from antiphon.checkpoint.presets import nano
from antiphon.checkpoint.synthetic import write_checkpoint
from antiphon.models.dual_qwen import DualQwen
from antiphon.prompt import Prompt
from antiphon.request import SamplingParams
from antiphon.solo import SoloRun


def rms(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(x, theta):
    """x [n, heads, D], positions 0..n-1, half-split pairs."""
    n, _, d = x.shape
    angle = torch.arange(n)[:, None] * theta ** -(torch.arange(0, d, 2) / d)
    cos, sin = (f(angle).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def layer(x, w, prefix, c):
    """One Qwen2 layer over x [n, H], official names."""
    y = rms(x, w[f"{prefix}.input_layernorm.weight"], c.rms_norm_eps)
    q, k, v = (
        F.linear(y, w[f"{prefix}.self_attn.{p}_proj.weight"], w[f"{prefix}.self_attn.{p}_proj.bias"])
        .unflatten(-1, (-1, c.head_dim))
        for p in "qkv"
    )  # fmt: skip
    q, k = rotate(q, c.rope_theta), rotate(k, c.rope_theta)
    k, v = (t.repeat_interleave(c.num_heads // c.num_kv_heads, 1) for t in (k, v))
    out = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), is_causal=True).transpose(0, 1)
    x = x + out.flatten(1) @ w[f"{prefix}.self_attn.o_proj.weight"].T
    y = rms(x, w[f"{prefix}.post_attention_layernorm.weight"], c.rms_norm_eps)
    gate, up = (y @ w[f"{prefix}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
    return x + (F.silu(gate) * up) @ w[f"{prefix}.mlp.down_proj.weight"].T


def naive_logits(w, c, audio_ids, text_ids):
    """Both heads at the last position."""
    x = w["model.embed_tokens.weight"][audio_ids] + w["model.embed_tokens.weight"][text_ids]
    for i in range(c.num_trunk_layers):
        x = layer(x, w, f"model.layers.{i}", c)
    y = x
    for i in range(c.num_trunk_layers, c.num_layers):
        x = layer(x, w, f"model.layers.{i}", c)
    for i in range(c.num_audio_layers):
        y = layer(y, w, f"model.mimo_layers.{i}", c)
    text = rms(x[-1], w["model.norm.weight"], c.rms_norm_eps) @ w["lm_head.weight"].T
    return text, rms(y[-1], w["model.mimo_norm.weight"], c.rms_norm_eps) @ w["mimo_output.weight"].T


@pytest.mark.parametrize("layers", [(2, 1, 2), (1, 3, 1), (2, 2, 2)], ids=["audio deeper", "text deeper", "equal"])
def test_branches_of_any_depth(tmp_path, layers):
    from dataclasses import replace

    trunk, text, audio = layers
    config = nano()
    llm = replace(config.llm, num_trunk_layers=trunk, num_layers=trunk + text, num_audio_layers=audio)
    config = write_checkpoint(replace(config, llm=llm, flow=None, vocoder=None), tmp_path / "model")
    model = DualQwen(config.llm, checkpoint.load_llm(config, torch.float32))
    w = {k: v.float() for k, v in load_file(config.path / "model.safetensors").items()}
    rng = np.random.default_rng(0)
    audio_ids, text_ids = torch.from_numpy(rng.integers(0, config.llm.vocab_size, (2, 21)))
    nothing = torch.zeros(21, dtype=torch.int64)
    prompt = Prompt(audio_ids, text_ids, nothing.byte(), nothing - 1, (), (), "both")
    steps = SoloRun(model, prompt, SamplingParams(max_new_tokens=4), 0, both_heads=True).steps(keep_logits=True)
    ids = [audio_ids, text_ids]
    for step in steps:
        for got, want in zip(
            (step.output.text_logits[0], step.output.audio_logits[0]), naive_logits(w, config.llm, *ids), strict=True
        ):
            assert (got - want).abs().max() <= 2e-5 * want.abs().max()
        ids = [torch.cat((old, torch.tensor([new]))) for old, new in zip(ids, (step.audio, step.text), strict=True)]
    assert len(ids[0]) == 25
