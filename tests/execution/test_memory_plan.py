"""The memory plan: what it says of caches is what is allocated, and its workspaces are bounds."""

from __future__ import annotations

import torch

from antiphon.checkpoint.presets import kimi_audio_7b
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig, kv_sizes
from antiphon.execution.kv_cache import sizes_for
from antiphon.execution.memory_plan import flow_packed_bytes, llm_workspace, memory_plan
from antiphon.models.flow_dit import PACKED_LIMIT
from antiphon_kernels.native import available, prefers_fixed


def test_the_engine_plans_what_it_allocates(tiny_runtime):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=3))
    plan, kv = engine.memory, engine.runner.kv
    assert plan.caches["key/value pages"] == kv.trunk.nbytes + kv.upper.nbytes
    assert plan.weights["llm"] == sum(t.nbytes for t in tiny_runtime.llm.weights.values())
    state = [t for t in vars(engine.runner.state).values() if isinstance(t, torch.Tensor)]
    assert 0 < sum(t.nbytes for t in state) <= plan.caches["histories and sampling state"]
    assert kv_sizes(engine.config).trunk == kv.trunk.shape[2]
    assert "CUDA graphs" not in plan.workspace
    assert any(line.startswith("total") for line in plan.lines())


def test_a_cpu_reckons_with_the_copies_that_it_multiplies_by(tiny_runtime):
    plan = Engine(tiny_runtime, EngineConfig(max_sequences=1)).memory
    tokenizer = tiny_runtime.encoder.tokenizer
    layers = [*tokenizer.network.layers, *tokenizer.pooled_layers]
    copies = {part: size for part, size in plan.weights.items() if part.endswith(", packed")}
    assert ("speech tokenizer, packed" in copies) == prefers_fixed(layers[0].fc1.weight)
    if "speech tokenizer, packed" in copies:
        packed = [dense.fixed for layer in layers for dense in (layer.qkv, layer.out, layer.fc1, layer.fc2)]
        assert sum(p.tiles.nbytes for p in packed) <= 1.3 * copies["speech tokenizer, packed"]


def test_a_cpu_reckons_with_the_windows_that_it_keeps_packed(tiny_runtime):
    """One stream at full size is 5 blocks of 256 keys of each head; two would be over the limit. A GPU keeps none."""
    config = EngineConfig(max_sequences=1, max_speech_batch=2)
    workspace = Engine(tiny_runtime, config).memory.workspace
    assert workspace.get("flow, packed windows", 0) == available * flow_packed_bytes(tiny_runtime.config.flow, 2, tiny_runtime.dtype)
    full = kimi_audio_7b()
    assert flow_packed_bytes(full.flow, 1, torch.bfloat16) == 16 * 18 * 5 * 2 * 256 * 128 * 4 < PACKED_LIMIT
    assert flow_packed_bytes(full.flow, 2, torch.bfloat16) == PACKED_LIMIT
    assert flow_packed_bytes(full.flow, 1, torch.float32) == PACKED_LIMIT
    assert "flow, packed windows" not in memory_plan(full, {}, sizes_for(full.llm, 1500), 1, 512).workspace


def test_the_whole_7b_model_for_64_speakers():
    config = kimi_audio_7b()
    plan = memory_plan(config, {"llm": 18 << 30}, sizes_for(config.llm, 64 * 1500), 64, 512, num_graphs=40)
    windows = plan.caches["flow windows"]
    assert windows == 64 * 2 * 16 * 900 * 2304 * 2
    assert plan.fits(80 << 30) and not plan.fits(24 << 30)
    assert llm_workspace(config.llm, 64, 64, torch.bfloat16) > 45_449_344, (
        "the peak that a rehearsal of 64 rows recorded"
    )
