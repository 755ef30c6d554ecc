"""The native step, of decodes and of prompts, against the operators it is made of: the same logits and the same pages, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import antiphon_kernels as ak
from antiphon.config import LlmConfig, SpecialTokens
from antiphon.models.dual_qwen import AttentionLayout, DualQwen, KVPages, StepLayout
from antiphon_kernels.linear_compact import compact
from antiphon_kernels.linear_int4 import quantize as quantize_int4
from antiphon_kernels.linear_int8 import quantize as quantize_int8
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels import _native
from antiphon_kernels.native.model_step import MAX_STEP_ROWS, ModelStep, available_for

CONFIG = LlmConfig(
    vocab_size=301,
    hidden_size=96,
    intermediate_size=80,
    num_layers=5,
    num_audio_layers=2,
    num_trunk_layers=2,  # leaves three text layers: two paired, one alone
    num_heads=4,
    num_kv_heads=2,
    head_dim=24,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    adaptor_input_dim=8,
    audio_token_offset=200,
    audio_delay=6,
    max_positions=128,
    special=SpecialTokens.from_num_base(100),
)
PAGES = 70


def layer(c: LlmConfig, prefix: str, branches: int, random) -> dict[str, torch.Tensor]:
    h, i = c.hidden_size, c.intermediate_size
    shapes = {
        "input_norm": (h,),
        "qkv_weight": (c.qkv_size, h),
        "qkv_bias": (c.qkv_size,),
        "o_weight": (h, h),
        "post_norm": (h,),
        "gate_up": (2 * i, h),
        "down": (h, i),
    }
    return {f"{prefix}.{name}": random(branches, *shape) for name, shape in shapes.items()}


def build_model(c: LlmConfig, dtype: torch.dtype) -> DualQwen:
    torch.manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)

    v, h = c.vocab_size, c.hidden_size
    weights = {
        "embed": random(v, h) * 3,
        "final_norm": random(2, h),
        "lm_head": random(v, h),
        "audio_head": random(v, h),
    }
    for i in range(c.num_trunk_layers):
        weights |= layer(c, f"trunk.{i}", 1, random)
    for j in range(max(c.num_text_layers, c.num_audio_layers)):
        weights |= layer(c, f"upper.{j}", 2 if j < min(c.num_text_layers, c.num_audio_layers) else 1, random)
    return DualQwen(c, weights)


def pages(c: LlmConfig, dtype: torch.dtype) -> KVPages:
    upper = max(c.num_text_layers, c.num_audio_layers)
    shape = (2, PAGES, 16, c.num_kv_heads, c.head_dim)
    torch.manual_seed(6)
    return KVPages(torch.randn(c.num_trunk_layers, *shape).to(dtype), torch.randn(upper, *shape).to(dtype))


def attention(lengths: list[int], first_page: int) -> AttentionLayout:
    tables = torch.tensor(
        [[first_page + 2 * s, first_page + 2 * s + 1] for s in range(len(lengths))], dtype=torch.int32
    )
    positions = torch.tensor(lengths, dtype=torch.int64) - 1
    slots = tables.view(-1, 2)[torch.arange(len(lengths)), positions // 16] * 16 + positions % 16
    return AttentionLayout(
        positions,
        slots.long(),
        tables.view(-1, 2),
        torch.arange(len(lengths) + 1, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
        min(1, len(lengths)),
    )


def step_layout(text: list[int], audio: list[int], silent: tuple[int, ...] = ()) -> StepLayout:
    """Sequences 0, 1, ... of lengths 5, 6, ...; those whose index is in ``silent`` want no logits."""
    count = max([*text, *audio]) + 1
    lengths = [5 + 3 * s for s in range(count)]
    chosen = [*text, *audio]
    heads = [i for i, s in enumerate(chosen) if s not in silent]
    return StepLayout(
        trunk=attention(lengths, 0),
        upper=attention([lengths[s] for s in chosen], 0),
        upper_rows=torch.tensor(chosen, dtype=torch.int64),
        split=len(text),
        num_text_sequences=len(text),
        head_rows=torch.tensor(heads, dtype=torch.int64),
        head_split=sum(i < len(text) for i in heads),
    )


LAYOUTS = {
    "one": step_layout([0], [0]),
    "text only": step_layout([0, 1], []),
    "audio only": step_layout([], [0, 1, 2]),
    "mixed": step_layout([0, 2, 4], [1, 2], silent=(2,)),
    "delay": step_layout([0, 1], [0, 1], silent=()),
}


def fused_input(model: DualQwen, count: int, dtype: torch.dtype):
    """Ids and features of ``count`` rows, two of three with a feature, in any order."""
    audio_ids, text_ids = torch.arange(count) * 7 % 301, torch.arange(count) * 11 % 301
    feature_rows = torch.where(torch.arange(count) % 3 > 0, torch.arange(count).flip(0), -1)
    return audio_ids, text_ids, torch.randn(count, model.config.hidden_size).to(dtype), feature_rows


def equals_the_operators(model: DualQwen, plain: DualQwen, layout, with_threads) -> None:
    """The step over ``model`` gives what the operators give over ``plain``, with features and without."""
    c, count, dtype = model.config, layout.trunk.positions.shape[0], model.embed_table.dtype
    ours, theirs = pages(c, dtype), pages(c, dtype)
    assert available_for(model, ours.trunk, ours.upper)
    step = ModelStep(model, ours.trunk, ours.upper, c.num_text_layers, c.num_audio_layers)
    assert step.fits(layout)
    audio_ids, text_ids, features, rows = fused_input(model, count, dtype)
    for given in ((features, rows), (None, torch.full((count,), -1))):
        with ak.use_backend("native"):
            expected = plain.logits(plain.hidden(plain.embed(audio_ids, text_ids, *given), layout, theirs), layout)
        for threads in (1, 2, 3, 7):  # of seven some find no rows of their own
            got = with_threads(threads, lambda given=given: step(audio_ids, text_ids, layout, *given))
            assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1]), threads
        assert torch.equal(ours.trunk, theirs.trunk) and torch.equal(ours.upper, theirs.upper)


def ragged_attention(rows: list[int], cached: list[int]) -> AttentionLayout:
    """Sequences with so many rows each, behind so many positions."""
    width = max([0, *(-(-(n + c) // 16) for n, c in zip(rows, cached))])
    tables = torch.arange(width * len(rows), dtype=torch.int32).view(-1, width)
    positions = torch.cat([torch.arange(c, c + n) for n, c in zip(rows, cached)] or [torch.empty(0, dtype=torch.int64)])
    sequence = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows, dtype=torch.int64))
    lengths = torch.tensor([n + c for n, c in zip(rows, cached)], dtype=torch.int32)
    first = torch.tensor([0, *rows]).cumsum(0).int()
    return AttentionLayout(
        positions, tables[sequence, positions // 16].long() * 16 + positions % 16, tables, first, lengths, max([0, *rows])
    )


def ragged_layout(rows: list[int], cached: list[int], text: list[int], audio: list[int], silent: tuple[int, ...] = ()):
    """Sequences 0, 1, ... with so many ``rows``; each wants logits of its last one unless it is ``silent``."""
    chosen, first = [*text, *audio], torch.tensor([0, *rows]).cumsum(0)
    last = torch.tensor([rows[s] for s in chosen]).cumsum(0) - 1
    wants = [i for i, s in enumerate(chosen) if s not in silent]
    return StepLayout(
        trunk=ragged_attention(rows, cached),
        upper=ragged_attention([rows[s] for s in chosen], [cached[s] for s in chosen]),
        upper_rows=torch.cat([torch.arange(first[s], first[s + 1]) for s in chosen]),
        split=sum(rows[s] for s in text),
        num_text_sequences=len(text),
        head_rows=last[wants],
        head_split=sum(i < len(text) for i in wants),
    )


PROMPTS = {
    "one": ragged_layout([33], [0], [0], [0]),
    "few rows": ragged_layout([7, 1, 3], [0, 20, 9], [0, 1, 2], [1, 2]),
    "text only, chunks": ragged_layout([20, 19], [0, 16], [0, 1], [], silent=(0,)),
    "audio only": ragged_layout([18], [5], [], [0]),
    "beside decodes": ragged_layout([1, 1, 40, 17, 1], [3, 40, 0, 8, 17], [0, 2, 3], [0, 1, 2, 4], silent=(2,)),
    "decodes of many": ragged_layout([1] * 20, [i for i in range(20)], list(range(18)), list(range(3))),
    "branches of few": ragged_layout([17, 1, 1], [0, 3, 4], [1], [1, 2]),
    "nobody wants logits": ragged_layout([30], [0], [0], [0], silent=(0,)),
}


def takes_prompts(dtype: torch.dtype) -> bool:
    """Whether the instruction set in use has kernels of its own for many rows of plain weights."""
    return _native.isa() != "scalar" and (_native.isa() != "amx" or dtype == torch.bfloat16)


@pytest.mark.parametrize("longer", ["text", "audio", "equal"])
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_equal_the_operators(name, longer, dtype, isa, with_threads):
    change = {"text": {}, "audio": {"num_layers": 3, "num_audio_layers": 3}, "equal": {"num_layers": 4}}[longer]
    model, layout = build_model(replace(CONFIG, **change), dtype), PROMPTS[name]
    rows = max(layout.trunk.positions.shape[0], layout.split, layout.upper_rows.shape[0] - layout.split)
    if rows > 16 and not takes_prompts(dtype):
        kv = pages(model.config, dtype)
        assert not ModelStep(model, kv.trunk, kv.upper, 3, 2).fits(layout)
        return
    equals_the_operators(model, model, layout, with_threads)


@pytest.mark.parametrize("scheme", ["int8", "int4", "compact", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_with_stored_weights(scheme, dtype, isa, with_threads):
    """Quantised, compact, and some of each beside plain ones."""
    if not takes_prompts(dtype) and scheme == "mixed" or isa == "scalar":
        pytest.skip("more than 16 rows are PyTorch's there")
    config, layout = replace(CONFIG, hidden_size=128, intermediate_size=128, head_dim=32), PROMPTS["beside decodes"]
    half = build_model(config, torch.bfloat16)
    if scheme == "compact":
        # Against plain ones in the same kernels, where those are the operators'.
        model, plain = widened(compacted(half, MATRICES), dtype), widened(half, dtype)
        plain = plain if takes_prompts(dtype) else model
    elif scheme == "mixed":
        model = widened(compacted(half, ("o_weight", "audio_head")), dtype)
        plain = model = quantised(model, {"down": "int4", "lm_head": "int8"})
    else:
        plain = model = quantised(widened(half, dtype), dict.fromkeys(MATRICES, scheme))
    equals_the_operators(model, plain, layout, with_threads)


def test_as_many_rows_as_it_takes(isa, with_threads):
    """In the trunk and in both branches: several chunks of rows and blocks of keys. One more is refused, by either side."""
    config = replace(CONFIG, max_positions=MAX_STEP_ROWS + 1)
    model, layout = build_model(config, torch.bfloat16), ragged_layout([MAX_STEP_ROWS], [0], [0], [0])
    longer = ragged_layout([MAX_STEP_ROWS + 1], [0], [0], [0])
    kv = pages(config, torch.bfloat16)
    step = ModelStep(model, kv.trunk, kv.upper, 3, 2)
    assert step.fits(layout) == takes_prompts(torch.bfloat16) and not step.fits(longer)
    with pytest.raises(ValueError, match="expected 1 to 512 rows .* got 513, 513 and 513"):
        step(*fused_input(model, MAX_STEP_ROWS + 1, torch.bfloat16)[:2], longer)
    with pytest.raises(ValueError, match="logits of 5"):
        step(*fused_input(model, 1, torch.bfloat16)[:2], replace(LAYOUTS["one"], head_rows=torch.zeros(5, dtype=torch.int64)))
    if step.fits(layout):
        equals_the_operators(model, model, layout, with_threads)


def test_quantised_rows_that_it_takes(isa):
    """As many as the operators' kernels."""
    config = replace(CONFIG, hidden_size=128, intermediate_size=128, head_dim=32, max_positions=MAX_STEP_ROWS)
    model = quantised(build_model(config, torch.bfloat16), dict.fromkeys(MATRICES, "int8"))
    kv = pages(config, torch.bfloat16)
    step = ModelStep(model, kv.trunk, kv.upper, 3, 2)
    most = 16 if isa == "scalar" else MAX_STEP_ROWS
    for rows in (16, 17, MAX_STEP_ROWS, MAX_STEP_ROWS + 1):
        assert step.fits(ragged_layout([rows], [0], [0], [0])) == (rows <= most), rows


def test_a_row_has_the_same_bits_whatever_ran_before(isa):
    """Buffers that a longer step has grown and filled."""
    if isa == "scalar":
        pytest.skip("more than 16 rows are PyTorch's there")
    model, kv = build_model(CONFIG, torch.bfloat16), pages(CONFIG, torch.bfloat16)
    step = ModelStep(model, kv.trunk, kv.upper, 3, 2)
    short, long = PROMPTS["one"], PROMPTS["beside decodes"]

    def run(layout):
        return step(*fused_input(model, len(layout.trunk.positions), torch.bfloat16)[:2], layout)

    before = run(short)
    run(long)
    assert all(torch.equal(a, b) for a, b in zip(before, run(short)))


@pytest.mark.parametrize("longer", ["text", "audio", "equal"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_operators(name, longer, dtype, isa, with_threads):
    change = {"text": {}, "audio": {"num_layers": 3, "num_audio_layers": 3}, "equal": {"num_layers": 4}}[longer]
    config, layout = replace(CONFIG, **change), LAYOUTS[name]
    model = build_model(config, dtype)
    equals_the_operators(model, model, layout, with_threads)


def quantised(model: DualQwen, schemes: dict[str, str]) -> DualQwen:
    """The model with the matrices whose name ends in a key of ``schemes`` rounded to that scheme."""
    weights = dict(model.weights)
    for name, weight in model.weights.items():
        for ending, scheme in schemes.items():
            if name.endswith(ending):
                quantize = {"int8": quantize_int8, "int4": quantize_int4}[scheme]
                weights[name], weights[f"{name}.scale"] = quantize(weight)
    return DualQwen(model.config, weights)


@pytest.mark.parametrize("scheme", ["int8", "int4", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_operators_with_quantised_weights(scheme, dtype, isa, with_threads):
    config, layout = replace(CONFIG, hidden_size=128, intermediate_size=128, head_dim=32), LAYOUTS["mixed"]
    names = ("qkv_weight", "o_weight", "gate_up", "down", "lm_head", "audio_head")
    schemes = {"down": "int4", "lm_head": "int8"} if scheme == "mixed" else dict.fromkeys(names, scheme)
    model = quantised(build_model(config, dtype), schemes)
    equals_the_operators(model, model, layout, with_threads)


def compacted(model: DualQwen, kinds: tuple[str, ...]) -> DualQwen:
    """The model with the matrices whose name ends in one of ``kinds`` compact, where the format fits them."""
    weights = dict(model.weights)
    for name, weight in model.weights.items():
        if name.endswith(kinds) and (pair := compact(weight)) is not None:
            weights[name], weights[f"{name}.scale"] = pair
    return DualQwen(model.config, weights)


def widened(model: DualQwen, dtype: torch.dtype) -> DualQwen:
    """The model with everything in ``dtype`` but what is compact."""
    kept = (torch.uint8, torch.int32)
    return DualQwen(model.config, {name: w if w.dtype in kept else w.to(dtype) for name, w in model.weights.items()})


MATRICES = ("qkv_weight", "o_weight", "gate_up", "down", "lm_head", "audio_head")


@pytest.mark.parametrize("kinds", [MATRICES, ("gate_up", "audio_head")], ids=["all", "some"])
@pytest.mark.parametrize("inner", [128, 80], ids=["whole groups", "a plain down"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_compact_weights_give_what_the_plain_ones_give(name, dtype, inner, kinds, isa, with_threads):
    """The step's results, against those of the operators over the plain weights, in float32 widened ones; a matrix that does not
    fit stays plain."""
    config, layout = replace(CONFIG, hidden_size=128, intermediate_size=inner, head_dim=32), LAYOUTS[name]
    half = build_model(config, torch.bfloat16)
    plain, model = widened(half, dtype), widened(compacted(half, kinds), dtype)
    assert model.trunk[0].gate_up.scheme == model.audio_head.scheme == "compact"
    assert (model.upper[0].down.scheme == "compact") == ("down" in kinds and inner == 128)
    equals_the_operators(model, plain, layout, with_threads)


def test_compact_weights_beside_quantised_ones(isa, with_threads):
    """As a converted checkpoint with bfloat16 heads has them, against the operators over the same weights."""
    config, layout = replace(CONFIG, hidden_size=128, intermediate_size=128, head_dim=32), LAYOUTS["mixed"]
    half = quantised(build_model(config, torch.bfloat16), {"_weight": "int4", "down": "int8"})
    model = compacted(half, ("lm_head", "audio_head"))
    assert model.lm_head.scheme == "compact" and model.trunk[0].qkv.scheme == "int4"
    equals_the_operators(model, half, layout, with_threads)


def test_everything_beside_compact_weights_is_of_one_dtype():
    config = replace(CONFIG, hidden_size=128, head_dim=32)
    model = compacted(build_model(config, torch.bfloat16), ("o_weight",))
    half, single = pages(config, torch.bfloat16), pages(config, torch.float32)
    assert available_for(model, half.trunk, half.upper) and not available_for(model, single.trunk, single.upper)
    wide = widened(model, torch.float32)
    assert available_for(wide, single.trunk, single.upper) and not available_for(wide, half.trunk, half.upper)


def test_refuses_what_it_cannot_run():
    model, kv = build_model(CONFIG, torch.float32), pages(CONFIG, torch.float32)
    step = ModelStep(model, kv.trunk, kv.upper, 3, 2)
    layout = LAYOUTS["one"]
    assert step.fits(layout)
    too_many = torch.zeros(MAX_STEP_ROWS + 1, dtype=torch.int64)
    assert not step.fits(replace(layout, trunk=replace(layout.trunk, positions=too_many)))
    assert not step.fits(replace(layout, trunk=replace(layout.trunk, positions=too_many[:0])))
    with ak.use_backend("reference"):
        assert not step.fits(layout)
    assert not available_for(model, kv.trunk.half(), kv.upper)
