"""An evaluation of the DiT in one native call against the operators it is made of: the same velocities, bit for bit."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

import antiphon_kernels as ak
from antiphon.checkpoint.network_weights import Arrangement, arrange
from antiphon.execution.memory_plan import flow_packed_bytes
from antiphon.models.flow_dit import MODULATED_ROWS, NORM_EPS, PACKED_LIMIT, FlowBatch, FlowDit, FlowWindow
from antiphon_kernels.native import available

if not available:
    pytest.skip("native module not built", allow_module_level=True)

from antiphon_kernels.linear_compact import reference_widen
from antiphon_kernels.linear_fixed import linear_fixed
from antiphon_kernels.native import network_pass
from antiphon_kernels.native.arguments import pointer
from antiphon_kernels.native.flow_pass import FlowPass, available_for, linears
from antiphon_kernels.native.linear import wide_linear
from antiphon_kernels.native.network_pass import chosen

WINDOW, SLOTS = 40, 4
CONFIG = SimpleNamespace(
    hidden_size=64, depth=3, num_heads=2, head_dim=32, num_mels=20, rope_base=1e4, max_positions=256
)
STREAMS = {  # rows, cached rows, slot of each
    "one": [(44, 0, 0)],
    "cached": [(52, 24, 2)],
    "few": [(4, 8, 1)],
    "three": [(24, 40, 3), (4, 0, 0), (64, 12, 1)],
    "idle": [(16, 4, 1), (0, 0, 0)],
    "many": [(168, 40, 2), (168, 0, 0)],
}
WHOLE_GROUPS = SimpleNamespace(**{**vars(CONFIG), "hidden_size": 128, "head_dim": 64})
LONG_WINDOW = 320
LONG = SimpleNamespace(**{**vars(CONFIG), "max_positions": 512})
LONG_STREAMS = {  # what is cached: around a step of 32 keys, around a block of 256, no step whole, much, none
    "steps": [(24, 31, 1), (8, 32, 2), (36, 33, 3), (4, 0, 0)],
    "blocks": [(20, 300, 2), (8, 256, 1), (8, 1, 3), (40, 240, 0)],
    "no step": [(8, 31, 1), (12, 1, 0)],
    "idle": [(0, 64, 1), (16, 32, 2)],
    "much": [(168, 300, 3)],
    "none": [(12, 0, 0)],
}
WIDTHS = (0.25, 0.125, 0.3, 0.2)


FORMATS = pytest.mark.parametrize(
    ("dtype", "digits"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)],
    ids=["float32", "digits", "bfloat16"],
)


def build_dit(dtype: torch.dtype, config=CONFIG) -> FlowDit:
    torch.manual_seed(6)
    hidden, mlp = config.hidden_size, 160
    outputs = {"adaLN_modulation.1": 6 * hidden, "attn.qkv": 3 * hidden, "mlp.fc1": mlp}
    weights = {"semantic_token_embedding.weight": torch.randn(50, hidden)}
    for name in linears(config.depth):
        kind = name.split(".", 2)[-1]
        n, k = outputs.get(kind, hidden), mlp if kind == "mlp.fc2" else hidden
        if name == "input_linear":
            k = config.num_mels
        if name.startswith("final_layer"):
            n = config.num_mels if name.endswith("linear") else 2 * hidden
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.randn(n, k) / k**0.5, torch.randn(n) / 4
    return FlowDit(config, {name: weight.to(dtype) for name, weight in weights.items()})


def batch_of(streams, frames_per_token: int = 4) -> FlowBatch:
    rows = [count for count, _, _ in streams]
    return FlowBatch(
        token_ids=torch.arange(sum(rows) // frames_per_token) % 50,
        positions=torch.cat([torch.arange(cached, cached + count) for count, cached, _ in streams]),
        cu_seqlens=torch.tensor([0, *torch.tensor(rows).cumsum(0)], dtype=torch.int32),
        slots=torch.tensor([slot for _, _, slot in streams]),
        cache_lens=torch.tensor([cached for _, cached, _ in streams], dtype=torch.int32),
        max_seqlen=max(rows),
        frames_per_token=frames_per_token,
    )


def bind(dit: FlowDit, packed_limit: int = PACKED_LIMIT, digits: bool | None = None) -> FlowPass:
    """``digits``: whether float32 maps are bound as digits; None: where the instruction set prefers that."""
    with pytest.MonkeyPatch.context() as patch:
        if digits is not None:
            patch.setattr(network_pass, "prefers_fixed", lambda weight: digits)
        return FlowPass(dit.config, dit._dense, dit.cos, dit.sin, NORM_EPS, packed_limit, alone_work=0)


def random_window(dit: FlowDit, batch: FlowBatch, window_len: int = WINDOW) -> FlowWindow:
    """Only the valid rows are numbers."""
    window = FlowWindow.empty(dit.config, SLOTS, window_len, dit.dtype, dit.device)
    window.storage.normal_()
    for slot in range(SLOTS):
        valid = max((int(n) for n, s in zip(batch.cache_lens, batch.slots) if s == slot), default=0)
        window.storage[:, :, slot * window_len + valid : (slot + 1) * window_len] = torch.nan
    return window


def inputs(dit: FlowDit, batch: FlowBatch, window_len: int = WINDOW):
    """State, time vector, condition and window."""
    window = random_window(dit, batch, window_len)
    x = torch.randn(len(batch.positions), dit.config.num_mels).to(dit.dtype)
    return x, torch.randn(dit.config.hidden_size).to(dit.dtype), dit.condition(batch.token_ids), batch, window


def with_wide_kernels(dit: FlowDit, digits: bool) -> FlowDit:
    """Its linear maps by the kernels of a pass, on any instruction set and for any number of rows."""

    def by_kernel(dense):
        if digits:
            return lambda x: linear_fixed(x, *dense.fixed, dense.bias)
        return lambda x: wide_linear(x, dense.weight[None], dense.bias[None], x.shape[0])

    dit._dense = {name: by_kernel(dense) for name, dense in dit._dense.items()}
    return dit


@pytest.mark.parametrize("name", STREAMS)
@FORMATS
def test_equals_the_operators(name, dtype, digits, isa, poison, with_threads):
    dit, batch = build_dit(dtype), batch_of(STREAMS[name])
    x, time, condition, _, window = arguments = inputs(dit, batch)
    bound = bind(dit, digits=digits)
    with ak.use_backend("native"):
        expected = with_wide_kernels(dit, digits).velocity(*arguments, bound=False)
    assert torch.isfinite(expected).all()
    modulation = torch.nn.functional.silu(time + condition)
    for threads in (1, 2, 3):
        got = with_threads(threads, lambda: bound(x, modulation, batch, window.keys, window.values))
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["one", "idle", "many"])
@FORMATS
def test_integrates_as_the_operators_do(name, dtype, digits, isa, poison, with_threads):
    dit, batch = build_dit(dtype), batch_of(STREAMS[name])
    x, _, condition, _, window = inputs(dit, batch)
    widths = (0.25, 0.125, 0.3, 0.2, 0.125)[: 2 if digits else 5]  # digits are slow where there are no tiles
    times = torch.randn(len(widths), dit.config.hidden_size).to(dtype)
    bound = bind(dit, digits=digits)
    modulation = torch.nn.functional.silu(times[:, None] + condition)
    before, expected = x.clone(), x
    with ak.use_backend("native"):
        with_wide_kernels(dit, digits)
        for time, width in zip(times, widths):
            expected = ak.euler_step(expected, dit.velocity(expected, time, condition, batch, window, bound=False), width)
    for threads in (1, 2, 3):
        got = with_threads(
            threads, lambda: bound.integrate(x, modulation, batch, window.keys, window.values, widths)
        )
        assert torch.equal(got, expected)
        assert torch.equal(x, before)


def solve_of(name: str, dtype: torch.dtype):
    """A network, a batch with long windows, its state and the modulations of several steps."""
    dit, batch = build_dit(dtype, LONG), batch_of(LONG_STREAMS[name])
    x, _, condition, _, window = inputs(dit, batch, LONG_WINDOW)
    times = torch.randn(len(WIDTHS), dit.config.hidden_size).to(dtype)
    return dit, batch, x, torch.nn.functional.silu(times[:, None] + condition), window


def one_by_one(dit: FlowDit, x, modulation, batch: FlowBatch, window: FlowWindow):
    """The steps of a solve as calls of one evaluation each, which keep nothing."""
    bound = bind(dit)
    with ak.use_backend("native"):
        for of_step, width in zip(modulation, WIDTHS):
            x = ak.euler_step(x, bound(x, of_step, batch, window.keys, window.values), width)
    assert bound.bound.packed_bytes == 0 and torch.isfinite(x).all()
    return x


def kept_bytes(name: str, dtype: torch.dtype) -> int:
    """What the memory plan reckons for a batch of LONG_STREAMS; nothing if no step of a window is whole."""
    streams = [(rows, cached) for rows, cached, _ in LONG_STREAMS[name] if rows]
    if all(cached < 32 for _, cached in streams):
        return 0
    return sum(flow_packed_bytes(LONG, 1, dtype, rows, cached) for rows, cached in streams)


@pytest.mark.parametrize("name", LONG_STREAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_window_packed_once_has_the_bits_of_one_packed_in_every_step(name, dtype, isa, poison, with_threads):
    """However much of it fills whole steps of keys; the memory for it is what the memory plan says."""
    dit, batch, x, modulation, window = solve_of(name, dtype)
    expected = one_by_one(dit, x, modulation, batch, window)
    bound = bind(dit)
    for threads in (1, 2, 3):
        got = with_threads(threads, lambda: bound.integrate(x, modulation, batch, window.keys, window.values, WIDTHS))
        assert torch.equal(got, expected)
    assert bound.bound.packed_bytes == kept_bytes(name, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", range(LONG.depth))
def test_later_steps_do_not_read_what_is_packed(layer, dtype, isa):
    """The state is written over the first rows of a window, after the first step: nobody may look for them again."""
    dit, batch, x, modulation, window = solve_of("idle", dtype)
    expected, bound = one_by_one(dit, x, modulation, batch, window), bind(dit)
    for cache in (window.keys, window.values):
        before = cache.clone()
        out = cache[layer, 2].flatten()[: x.numel()]
        assert out.numel() <= 32 * dit.config.hidden_size and out.data_ptr() == cache[layer, 2].data_ptr()
        tensors = (x, modulation, batch.positions, batch.cu_seqlens, batch.slots, batch.cache_lens)
        sizes = [len(x), batch.frames_per_token, len(batch.slots), LONG_WINDOW, cache.stride(0), 0]
        bound.bound.run(sizes, [pointer(t) for t in (*tensors, window.keys, window.values, out, None, None)], WIDTHS)
        assert torch.equal(out.view_as(x), expected)
        cache.copy_(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_call_packs_the_window_that_it_finds(dtype, isa, poison):
    """Another window of the same lengths, then another batch in the same memory, then the first window again."""
    dit, batch, x, modulation, window = solve_of("blocks", dtype)
    other = random_window(dit, batch, LONG_WINDOW)
    first, second = (one_by_one(dit, x, modulation, batch, w) for w in (window, other))
    assert not torch.equal(first, second)
    bound = bind(dit)
    assert torch.equal(bound.integrate(x, modulation, batch, window.keys, window.values, WIDTHS), first)
    assert torch.equal(bound.integrate(x, modulation, batch, other.keys, other.values, WIDTHS), second)
    few = batch_of(LONG_STREAMS["blocks"][1:2])
    few_args = x[:8].clone(), modulation[:, :2].clone(), few
    expected = one_by_one(dit, *few_args, other)
    assert torch.equal(bound.integrate(*few_args, other.keys, other.values, WIDTHS), expected)
    assert torch.equal(bound.integrate(x, modulation, batch, window.keys, window.values, WIDTHS), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_window_over_the_limit_is_packed_in_every_step(dtype, isa, poison, with_threads):
    dit, batch, x, modulation, window = solve_of("blocks", dtype)
    expected, needed = one_by_one(dit, x, modulation, batch, window), kept_bytes("blocks", dtype)
    for limit, held in ((needed, needed), (needed - 1, 0), (0, 0)):
        bound = bind(dit, limit)
        for threads in (1, 2):
            got = with_threads(
                threads, lambda b=bound: b.integrate(x, modulation, batch, window.keys, window.values, WIDTHS)
            )
            assert torch.equal(got, expected)
        assert bound.bound.packed_bytes == held


@FORMATS
def test_fills_the_window_as_the_operators_do(dtype, digits, isa, poison, with_threads):
    """Rows that replace the window's own: every layer reads it as it was, and nothing else is written."""
    dit, batch = build_dit(dtype), batch_of(STREAMS["three"])
    x, time, condition, _, window = inputs(dit, batch)
    bound = bind(dit, digits=digits)
    modulation = torch.nn.functional.silu(time + condition)
    rows = torch.tensor([0, 3, 23, 24, 27, 30, 91])
    places = torch.tensor([3 * WINDOW, 3 * WINDOW + 39, 3 * WINDOW + 7, 1, 0, WINDOW + 39, WINDOW])
    storage = [window.storage.clone() for _ in range(4)]
    with ak.use_backend("native"):
        with_wide_kernels(dit, digits).fill_window(
            x, time, condition, batch, FlowWindow(storage[0], SLOTS), rows, places, bound=False
        )
    assert not torch.equal(storage[0].nan_to_num(), window.storage.nan_to_num())
    for threads in (1, 2, 3):
        ours = FlowWindow(storage[threads], SLOTS)
        with_threads(threads, lambda w=ours: bound.fill(x, modulation, batch, w.keys, w.values, rows, places))
        assert torch.equal(ours.storage.nan_to_num(), storage[0].nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_velocity_is_one_call_with_the_operators_bits(dtype, isa):
    if not chosen():
        pytest.skip(f"{isa}: operators")
    dit, batch = build_dit(dtype), batch_of(STREAMS["three"])
    arguments = inputs(dit, batch)
    expected = dit.velocity(*arguments, bound=False)
    with ak.operator.count_calls() as calls:
        got = dit.velocity(*arguments)
        dit.fill_window(*arguments, torch.arange(4), torch.arange(4))
    assert calls == {("flow_pass", "native"): 2}
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_solve_takes_few_calls_and_has_the_operators_bits(dtype, isa):
    if not chosen():
        pytest.skip(f"{isa}: operators")
    dit, batch = build_dit(dtype), batch_of(STREAMS["three"])
    x, _, condition, _, window = inputs(dit, batch)
    times, widths = torch.randn(7, dit.config.hidden_size).to(dtype), (0.1,) * 7
    with ak.operator.count_calls() as calls:
        got = dit.integrate(x, times, widths, condition, batch, window)
    assert calls == {("flow_pass", "native"): -(-7 // (MODULATED_ROWS // len(condition)))}
    dit._pass_for = lambda batch: None
    assert torch.equal(got, dit.integrate(x, times, widths, condition, batch, window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_stream_is_the_same_alone_and_after_a_larger_batch(dtype, isa):
    dit, streams = build_dit(dtype), STREAMS["three"]
    x, time, condition, batch, window = inputs(dit, batch_of(streams))
    bound = bind(dit)
    modulation = torch.nn.functional.silu(time + condition)
    together, first = bound(x, modulation, batch, window.keys, window.values), 0
    for stream in streams:
        rows = slice(first, first + stream[0])
        tokens = slice(rows.start // 4, rows.stop // 4)
        alone = bound(x[rows], modulation[tokens], batch_of([stream]), window.keys, window.values)
        assert torch.equal(alone, together[rows])
        first = rows.stop


def test_frames_may_have_tokens_of_their_own(isa):
    dit, batch = build_dit(torch.float32), batch_of(STREAMS["cached"], frames_per_token=1)
    x, time, condition, _, window = arguments = inputs(dit, batch)
    bound = bind(dit, digits=False)
    expected = with_wide_kernels(dit, digits=False).velocity(*arguments, bound=False)
    got = bound(x, torch.nn.functional.silu(time + condition), batch, window.keys, window.values)
    assert torch.equal(got, expected)


def test_refuses_what_it_cannot_run(isa):
    dit = build_dit(torch.bfloat16)
    bound = bind(dit)
    batch = batch_of(STREAMS["one"])
    assert bound.fits(batch) == (isa != "scalar")
    assert not bound.fits(batch_of([(48, 0, 0)], frames_per_token=3))
    assert not bound.fits(batch_of([(0, 0, 0)]))
    with ak.use_backend("reference"):
        assert not bound.fits(batch)
    x, time, condition, _, window = inputs(dit, batch)
    for steps, widths in ((1, ()), (1, (0.5, 0.5)), (2, (0.5,))):
        with pytest.raises(ValueError, match=f"got {steps} for {len(widths)}"):
            bound.integrate(x, (time + condition).expand(steps, -1, -1), batch, window.keys, window.values, widths)
    assert not available_for(dit.config, build_dit(torch.float16)._dense)
    odd = SimpleNamespace(**{**vars(CONFIG), "hidden_size": 72, "head_dim": 36})
    assert not available_for(odd, build_dit(torch.bfloat16, odd)._dense)


def test_which_matrices_become_compact():
    """Those of linear maps whose inputs are whole groups, every bit of them; the plain ones are let go."""
    weights = build_dit(torch.bfloat16, WHOLE_GROUPS).weights
    plain = dict(weights)
    compact = arrange(weights, Arrangement.COMPACT)
    assert not weights
    changed = {name for name in plain if compact[name].dtype == torch.uint8}
    kinds = {name.split(".", 2)[-1].removesuffix(".weight") for name in changed if name.startswith("blocks.")}
    assert kinds == {"adaLN_modulation.1", "attn.qkv", "attn.proj", "mlp.fc1"}  # fc2 has 160 inputs
    assert set(compact) == set(plain) | {f"{name}.scale" for name in changed}
    for name, weight in plain.items():
        got = reference_widen(compact[name], compact[f"{name}.scale"]) if name in changed else compact[name]
        assert torch.equal(got.view(torch.int16), weight.view(torch.int16)), name


@pytest.mark.parametrize("case", ["three", "many"])
def test_compact_matrices_give_the_same_bits(case, isa, with_threads):
    plain = build_dit(torch.bfloat16, WHOLE_GROUPS)
    compact = FlowDit(WHOLE_GROUPS, arrange(dict(plain.weights), Arrangement.COMPACT))
    x, time, condition, batch, window = inputs(plain, batch_of(STREAMS[case]))
    times = torch.randn(len(WIDTHS), WHOLE_GROUPS.hidden_size).to(torch.bfloat16)
    calls = (
        lambda dit: dit.velocity(x, time, condition, batch, window),
        lambda dit: dit.integrate(x, times, WIDTHS, condition, batch, window),
    )
    for call in calls:
        expected = call(plain)
        for threads in (1, 2, 3):
            assert torch.equal(with_threads(threads, partial(call, compact)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("case", "frames"), [("cached", 4), ("cached", 1), ("few", 4), ("three", 16), ("many", 4)])
def test_panels_give_the_same_bits(case, frames, dtype, isa, poison, with_threads):
    """With few rows for a thread, which then share panels, and with many, where each has rows of its own that begin within
    tokens: velocities, solves, and windows."""
    if isa == "amx":
        pytest.skip("tiles read rows")
    streams = [(rows // frames * frames, cached, slot) for rows, cached, slot in STREAMS[case]]
    plain, batch = build_dit(dtype), batch_of(streams, frames)
    panels = FlowDit(CONFIG, arrange(dict(plain.weights), Arrangement.PANELS))
    x, time, condition, _, window = inputs(plain, batch)
    times, rows = torch.randn(len(WIDTHS), CONFIG.hidden_size).to(dtype), torch.tensor([0, 3])
    places = torch.tensor([WINDOW - 1, 2 * WINDOW])

    def results(dit: FlowDit) -> list[torch.Tensor]:
        bound, ours = bind(dit, digits=False), FlowWindow(window.storage.clone(), SLOTS)
        caches, silu = (ours.keys, ours.values), torch.nn.functional.silu
        velocity = bound(x, silu(time + condition), batch, *caches)
        solved = bound.integrate(x, silu(times[:, None] + condition), batch, *caches, WIDTHS)
        bound.fill(x, silu(time + condition), batch, *caches, rows, places)
        return [velocity, solved, ours.storage.nan_to_num()]

    with ak.use_backend("native"):
        expected = results(plain)
        for threads in (1, 2, 3):
            got = with_threads(threads, partial(results, panels))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
