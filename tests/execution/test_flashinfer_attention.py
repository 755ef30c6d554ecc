"""FlashInfer's calls: arguments against the real package's signatures, meaning against our reference, choice by suitability."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from decode_world import MIXES, SLOTS, World, random_model

from antiphon.checkpoint.presets import kimi_audio_7b, nano
from antiphon.errors import ConfigError
from antiphon.execution import flashinfer_attention as fi
from antiphon.execution.decode_graphs import DecodeGraphs
from antiphon.execution.graphs import TapeGraphs
from antiphon.execution.kv_cache import KVSizes
from antiphon.execution.llm_runner import LlmRunner
from antiphon_kernels import paged_attention

CPU = torch.device("cpu")
CONFIG = replace(kimi_audio_7b().llm, num_heads=4, num_kv_heads=2, head_dim=16)


class Wrapper:
    """Does with PyTorch what FlashInfer's documentation says its wrapper does."""

    def __init__(self, workspace, kv_layout="NHD", **buffers):
        assert kv_layout == "NHD" and workspace.dtype == torch.uint8
        self.buffers = buffers

    def plan(self, **arguments):
        self.planned = arguments

    def run(self, q, paged_kv_cache):
        p, out = self.planned, torch.empty_like(q)
        for s in range(len(p["qo_indptr"]) - 1):
            rows = slice(p["qo_indptr"][s], p["qo_indptr"][s + 1])
            pages = p["paged_kv_indices"][p["paged_kv_indptr"][s] : p["paged_kv_indptr"][s + 1]].long()
            length = (len(pages) - 1) * p["page_size"] + int(p["paged_kv_last_page_len"][s])
            k, v = (c[pages].flatten(0, 1)[:length] for c in paged_kv_cache)
            n = q[rows].shape[0]
            mask = torch.ones(n, length, dtype=torch.bool).tril(length - n)
            args = [t.transpose(0, 1)[None] for t in (q[rows], k, v)]
            y = torch.nn.functional.scaled_dot_product_attention(*args, mask, scale=p["sm_scale"], enable_gqa=True)
            out[rows] = y[0].transpose(0, 1)
        return out


def step():
    """Three sequences: a decode at a page's end, a prefill, a chunk of a longer prompt."""
    lengths, seq_lens = np.array([1, 5, 7]), np.array([32, 5, 40])
    tables = np.random.default_rng(0).permutation(12).astype(np.int32).reshape(3, 4)
    return np.concatenate(([0], np.cumsum(lengths))), tables, seq_lens


def test_plan_means_what_our_operator_computes():
    bounds, tables, seq_lens = step()
    kv, q = torch.randn(2, 12, 16, 2, 16), torch.randn(13, 4, 16)
    planned = fi.PlannedAttention(CONFIG, torch.float32, CPU, wrapper=Wrapper).plan(bounds, tables, seq_lens)
    want = paged_attention(
        q, kv[0], kv[1], torch.from_numpy(tables), torch.from_numpy(bounds.astype(np.int32)),
        torch.from_numpy(seq_lens.astype(np.int32)), 7, 16**-0.5,
    )  # fmt: skip
    torch.testing.assert_close(planned(q, kv), want, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def real():
    try:
        return fi.wrapper_class()
    except ImportError as error:
        pytest.skip(f"flashinfer-python is not importable here: {error}")


def test_calls_fit_the_real_signatures(real):
    arguments = fi.plan_arguments(CONFIG, torch.bfloat16, *step())
    signature = inspect.signature(real.plan)
    signature.bind(None, **arguments)
    assert set(arguments) <= set(signature.parameters), "no argument disappears in **kwargs"
    inspect.signature(real.__init__).bind(None, torch.empty(1), fi.LAYOUT)
    inspect.signature(real.run).bind(None, torch.empty(1), (torch.empty(1), torch.empty(1)))


def test_captured_calls_fit_the_real_signatures(real):
    """The decode wrapper in graph mode; its ``plan`` hands keywords on to ``_plan_impl``."""
    decode = fi.decode_wrapper_class()
    _, tables, seq_lens = step()
    arguments = fi.decode_plan_arguments(CONFIG, torch.bfloat16, tables, seq_lens)
    inspect.signature(decode.plan).bind(None, **arguments)
    assert set(arguments) <= set(inspect.signature(decode._plan_impl).parameters)
    captured = fi.CapturedAttention(CONFIG, torch.bfloat16, CPU, wrapper=GraphWrapper).open(3, 4)
    buffers = captured._wrapper.buffers
    inspect.signature(decode.__init__).bind(None, torch.empty(1), fi.LAYOUT, **buffers)
    assert buffers["use_cuda_graph"] and set(buffers) <= set(inspect.signature(decode.__init__).parameters)
    inspect.signature(decode.run).bind(None, torch.empty(1), (torch.empty(1), torch.empty(1)))


class GraphWrapper:
    """FlashInfer's decode wrapper in graph mode: ``plan`` fills fixed buffers, ``run`` reads nothing else."""

    def __init__(self, workspace, kv_layout="NHD", **buffers):
        self.buffers = buffers
        self.places = [buffers[f"paged_kv_{name}_buffer"] for name in ("indptr", "indices", "last_page_len")]

    def plan(self, indptr, indices, last_page_len, **settings):
        self.settings = settings
        for place, values in zip(self.places, (indptr, indices, last_page_len), strict=True):
            assert len(values) == len(place) or place is self.places[1]
            place[: len(values)] = values

    def run(self, q, paged_kv_cache):
        indptr, indices, last = self.places
        width = len(indices) // len(last)
        tables = indices[(indptr[:-1, None] + torch.arange(width)).clamp_max(len(indices) - 1)]
        seq_lens = (indptr[1:] - indptr[:-1] - 1) * self.settings["page_size"] + last
        bounds = torch.arange(len(q) + 1, dtype=torch.int32)
        return paged_attention(q, *paged_kv_cache, tables, bounds, seq_lens, 1, self.settings["sm_scale"])


@pytest.mark.parametrize("mix", MIXES)
def test_captured_steps_with_planned_attention_give_the_same_tokens(mix):
    model = random_model()
    plain, planned = World(model, MIXES[mix]), World(model, MIXES[mix])
    attention = fi.CapturedAttention(model.config, torch.float32, CPU, wrapper=GraphWrapper)
    delay = model.config.audio_delay
    graphs = DecodeGraphs(model, planned.kv, planned.state, TapeGraphs(), delay, attention)
    for _ in range(8):
        got = graphs.run(planned.decode_batch())[0].numpy().copy()
        np.testing.assert_array_equal(got, plain.eager())
        planned.steps, planned.last = plain.steps, plain.last
    assert all(graph._planned for graph in graphs._built.values())


def test_choice():
    llm, cuda = kimi_audio_7b().llm, torch.device("cuda")
    assert fi.suits(llm, torch.bfloat16, cuda)
    assert not fi.suits(llm, torch.float32, cuda) and not fi.suits(llm, torch.bfloat16, CPU)
    assert not fi.suits(nano().llm, torch.bfloat16, cuda)
    assert fi.choose("auto", llm, torch.bfloat16, CPU) is None
    assert fi.choose("antiphon", llm, torch.bfloat16, cuda) is None
    with pytest.raises(ConfigError, match="flashinfer-python"):
        fi.choose("flashinfer", llm, torch.bfloat16, CPU)
    with pytest.raises(ConfigError, match="expected one of"):
        fi.choose("other", llm, torch.bfloat16, CPU)


def test_a_runner_with_planned_attention_gives_the_same_tokens():
    model = random_model()
    plain, planned = World(model, MIXES["all kinds"]), World(model, MIXES["all kinds"])
    planned.runner.attention = fi.FlashInferAttention(model.config, torch.float32, CPU, wrapper=Wrapper)
    planned.prefill()
    plain.prefill()
    assert plain.last == planned.last and len(plain.last.text) == 5 <= SLOTS
    assert planned.runner.attention._parts[1]._wrapper.planned["num_qo_heads"] == model.config.num_heads
    assert LlmRunner.build(model, KVSizes(4, 4, 4), 1, torch.float32).attention is None
