"""The peers of ``benchmarks.peers``: one synthetic Qwen2, run by us, by transformers, by vLLM and by llama.cpp.

Every peer answers ``prefill(length)`` and ``decode(batch, context, steps)`` in seconds. Those that live in a virtual environment
of their own are a process that reads such requests from its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from antiphon.checkpoint.compact import compact_matrices
from antiphon.config import LlmConfig
from antiphon.execution.kv_cache import PAGE_SIZE, allocate, sizes_for
from antiphon.models.dual_qwen import AttentionLayout, DualQwen, KVPages, StepLayout
from antiphon_kernels.native import bind_model_step
from antiphon_kernels.weights_memory import WeightsMemory

WORKERS = Path(__file__).parent / "peer_workers"


def text_only(config: LlmConfig) -> LlmConfig:
    """The configuration without its audio branch: trunk and text layers, one Qwen2."""
    return replace(config, num_audio_layers=0)


def hf_weights(c: LlmConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random bfloat16 weights under the names that Qwen2 has everywhere; activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(torch.bfloat16)

    h, kv, inner = c.hidden_size, c.num_kv_heads * c.head_dim, c.intermediate_size
    weights = {"model.embed_tokens.weight": random(c.vocab_size, h) * h**0.5, "lm_head.weight": random(c.vocab_size, h)}
    weights["model.embed_tokens.weight"][0] = 0  # what our second stream adds
    weights["model.norm.weight"] = torch.ones(h, dtype=torch.bfloat16)
    for i in range(c.num_layers):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = torch.ones(h, dtype=torch.bfloat16)
        for part, rows in (("q", c.num_heads * c.head_dim), ("k", kv), ("v", kv)):
            weights[f"{layer}.self_attn.{part}_proj.weight"] = random(rows, h)
            weights[f"{layer}.self_attn.{part}_proj.bias"] = random(rows)
        weights[f"{layer}.self_attn.o_proj.weight"] = random(h, c.num_heads * c.head_dim) * 0.2
        weights[f"{layer}.mlp.gate_proj.weight"] = random(inner, h)
        weights[f"{layer}.mlp.up_proj.weight"] = random(inner, h)
        weights[f"{layer}.mlp.down_proj.weight"] = random(h, inner) * 0.4
    return weights


def packed(c: LlmConfig, hf: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under our packed names; what only an audio branch needs is the text branch's."""
    weights = {"embed": hf["model.embed_tokens.weight"], "lm_head": hf["lm_head.weight"]}
    weights |= {"audio_head": hf["lm_head.weight"], "final_norm": hf["model.norm.weight"].repeat(2, 1)}
    for i in range(c.num_layers):
        own, theirs = f"trunk.{i}", f"model.layers.{i}"
        if i >= c.num_trunk_layers:
            own = f"upper.{i - c.num_trunk_layers}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        parts = {
            "input_norm": [f"{theirs}.input_layernorm.weight"],
            "qkv_weight": [f"{attention}.{p}_proj.weight" for p in "qkv"],
            "qkv_bias": [f"{attention}.{p}_proj.bias" for p in "qkv"],
            "o_weight": [f"{attention}.o_proj.weight"],
            "post_norm": [f"{theirs}.post_attention_layernorm.weight"],
            "gate_up": [f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"],
            "down": [f"{mlp}.down_proj.weight"],
        }
        weights |= {f"{own}.{name}": torch.cat([hf[key] for key in keys])[None] for name, keys in parts.items()}
    return weights


def as_loaded(weights: dict[str, Tensor], compact: bool) -> dict[str, Tensor]:
    """The weights as loading a checkpoint leaves them: matrices compact, or all in pages of 2 MB."""
    if compact:
        return dict(compact_matrices(weights.items()))
    memory = WeightsMemory()
    return {name: memory.empty(tuple(w.shape), w.dtype).copy_(w) for name, w in weights.items()}


class Antiphon:
    """Our model: prompts and decode steps as the engine runs them, arg max instead of its sampler.

    The second stream gets the token id 0, whose embedding is set to zero, so the model is a plain Qwen2.
    """

    name = "antiphon"

    def __init__(self, config: LlmConfig, hf: dict[str, Tensor], max_batch: int, max_len: int, compact: bool = False):
        weights = as_loaded(packed(config, hf), compact)
        self.config, self.model = config, DualQwen(config, weights)
        self.pages = -(-max_len // PAGE_SIZE)
        sizes = sizes_for(config, max_batch * self.pages * PAGE_SIZE)
        self.kv: KVPages = allocate(config, sizes, torch.bfloat16, torch.device("cpu"))
        self.step = bind_model_step(self.model, self.kv.trunk, self.kv.upper, config.num_text_layers, 0)

    def forward(self, ids: Tensor, start: int) -> Tensor:
        """ids [S, n] at positions from ``start`` → logits [S, V] of each sequence's last one."""
        sequences, length = ids.shape
        layout = self._layout(sequences, length, start)
        audio = torch.zeros(ids.numel(), dtype=torch.int64)
        if self.step is not None and self.step.fits(layout):
            return self.step(audio, ids.flatten(), layout)[0]
        x = self.model.embed(audio, ids.flatten(), None, torch.full_like(audio, -1))
        return self.model.logits(self.model.hidden(x, layout, self.kv), layout)[0]

    def prefill(self, length: int) -> float:
        """Seconds for a prompt of ``length`` ids, to its last position's logits."""
        return _timed(lambda: self.forward(_ids(1, length, self.config), 0))

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds for ``steps`` steps of ``batch`` sequences behind ``context`` positions."""
        ids = _ids(batch, 1, self.config)
        return _timed(lambda: _greedy(self.forward, ids, context, steps))

    def _layout(self, sequences: int, length: int, start: int) -> StepLayout:
        rows = torch.arange(sequences * length)
        position = (torch.arange(length) + start).repeat(sequences)
        tables = torch.arange(sequences * self.pages, dtype=torch.int32).view(sequences, -1)
        slots = torch.arange(sequences).repeat_interleave(length) * self.pages * PAGE_SIZE + position
        starts = torch.arange(sequences + 1, dtype=torch.int32) * length
        lens = torch.full((sequences,), start + length, dtype=torch.int32)
        attention = AttentionLayout(position, slots, tables, starts, lens, length)
        last = torch.arange(1, sequences + 1) * length - 1
        return StepLayout(attention, attention, rows, len(rows), sequences, last, sequences)


class Transformers:
    """Hugging Face's Qwen2 in bfloat16 with scaled-dot-product attention, inference mode and its default growing cache."""

    name = "transformers"

    def __init__(self, config: LlmConfig, hf: dict[str, Tensor]):
        import transformers

        self.config = config
        self.version = transformers.__version__
        self.model = transformers.Qwen2ForCausalLM._from_config(
            hf_config(config), dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        self.model.load_state_dict(hf)
        self._cache = transformers.DynamicCache

    @torch.inference_mode()
    def prefill(self, length: int) -> float:
        """As :meth:`Antiphon.prefill`."""
        return _timed(lambda: self.first(_ids(1, length, self.config)))

    def first(self, ids: Tensor) -> Tensor:
        """Logits [S, V] of the last position of a prompt."""
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[:, -1]

    @torch.inference_mode()
    def decode(self, batch: int, context: int, steps: int) -> float:
        """As :meth:`Antiphon.decode`; filling the cache is not counted."""
        cache = self._cache()
        self.model(input_ids=_ids(batch, context, self.config), past_key_values=cache, logits_to_keep=1)

        def forward(ids: Tensor, start: int) -> Tensor:
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]

        ids = _ids(batch, 1, self.config)
        return _timed(lambda: _greedy(forward, ids, context, steps))


class Worker:
    """A peer in a virtual environment of its own: a process that is asked one line at a time.

    ``python`` runs ``peer_workers/NAME_worker.py FOLDER``; every answer is one JSON line. Between requests the process and its
    children are stopped, for engines that poll for work take processors from whoever is measured next.
    """

    def __init__(self, name: str, python: Path, folder: Path):
        self.name = name
        command = [str(python), str(WORKERS / f"{name}_worker.py"), str(folder)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=os.setpgrp,  # noqa: PLW1509 (takes no lock); in our session, so that the kernel ends the group with us
        )
        self.version = self._ask()["version"]

    def prefill(self, length: int) -> float:
        """As :meth:`Antiphon.prefill`."""
        return self._ask(prefill=length)["seconds"]

    def decode(self, batch: int, context: int, steps: int) -> float:
        """As :meth:`Antiphon.decode`."""
        return self._ask(batch=batch, context=context, steps=steps)["seconds"]

    def first(self, ids: Tensor) -> Tensor:
        """As :meth:`Transformers.first` for one sequence; only llama.cpp's worker answers this."""
        path = Path(self._ask(prompt=ids[0].tolist())["logits"])
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)[None]

    def close(self) -> None:
        """End the process."""
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, **request: int | list[int]) -> dict:
        if request:
            self._signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"peer"'):
                self._signal(signal.SIGSTOP)
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with {self._process.wait()}; run its worker by hand to see why")

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def hf_config(c: LlmConfig):
    """The Qwen2 configuration of the same shape."""
    import transformers

    return transformers.Qwen2Config(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        max_position_embeddings=c.max_positions,
        rms_norm_eps=c.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
    )


def _ids(sequences: int, length: int, config: LlmConfig) -> Tensor:
    """Ids other than 0, [sequences, length]."""
    return (torch.arange(sequences * length).view(sequences, length) * 7919 % (config.vocab_size - 1)) + 1


def _greedy(forward, ids: Tensor, start: int, steps: int) -> Tensor:
    for i in range(steps):
        ids = forward(ids, start + i).argmax(-1, keepdim=True)
    return ids


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def same_logits(ours: Antiphon, theirs: Transformers | Worker, prompt: Sequence[int]) -> float:
    """Rms difference of both models' last logits over the rms of theirs, for one prompt: the same model was measured."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        wanted, found = theirs.first(ids).float(), ours.forward(ids, 0).float()
    return ((found - wanted).square().mean() / wanted.square().mean()).sqrt().item()
