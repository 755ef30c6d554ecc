"""The capacity simulation: its arithmetic against known sizes, its behaviour against what must hold for any device."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest

from antiphon.checkpoint.presets import kimi_audio_7b
from antiphon.errors import ConfigError
from antiphon.planner.capacity import Simulation, find_capacity
from antiphon.planner.gpus import gpu
from antiphon.planner.simulated_load import Limits, Workload
from antiphon.planner.step_costs import Efficiency, StepCosts, layer_params, vocoder_params
from antiphon.scheduler import DeadlinePolicy, FcfsPolicy
from antiphon.speech import SpeechOptions

MODEL = kimi_audio_7b()
IDEAL = Efficiency(1, 1, 1, 0, 0)
SPEECH = SpeechOptions(first_chunk=12, chunk=36, chunk_growth=1.5, look_ahead=6, overlap="lookahead", eager=True)


def simulation(policy=None, evaluations: int = 10, **limits) -> Simulation:
    costs = StepCosts(gpu("h100"), MODEL, evaluations)
    make = policy if policy is not None else partial(DeadlinePolicy, cost=costs)
    return Simulation(costs, make, Workload(), SPEECH, Limits(**limits))


def test_sizes_of_the_released_model():
    costs = StepCosts(gpu("h100"), MODEL)
    assert layer_params(MODEL.llm) == pytest.approx(233e6, rel=0.01), "design.md section 1"
    assert 2 * vocoder_params(MODEL.vocoder) == pytest.approx(964e6 / 2, rel=0.03), "the release's file is float32"
    assert costs.kv_page_bytes == (16 * 22 * 2048, 16 * 6 * 2048)
    assert costs.window_bytes == 900 * 2 * 2304 * 16 * 2


def test_decode_is_bound_by_weights_and_prefill_by_arithmetic():
    costs = StepCosts(gpu("h100"), MODEL, efficiency=IDEAL)
    text_only = 2 * (28 * layer_params(MODEL.llm) + 168448 * 3584)
    assert costs.step(1, 1, 0, 1, 0, 0) == pytest.approx(text_only / 3.35e12, rel=1e-3)
    flops = 2 * 2048 * 34 * layer_params(MODEL.llm)
    assert costs.step(2048, 2048, 2048, 0, 0, 0) == pytest.approx(flops / 989e12, rel=1e-3)
    assert costs.step(64, 0, 64, 0, 64, 64 * 400) < costs.step(64, 64, 64, 64, 64, 64 * 400)


def test_conditioning_once_per_token_saves_what_the_design_says():
    """Modulation is a third of a DiT that computes it per frame; once per token leaves at most 0.78 of the arithmetic."""
    h = MODEL.flow.hidden_size
    per_frame = 12 * h * h + 6 * h * h
    assert (12 * h * h + 6 * h * h / 4) / per_frame <= 0.78
    costs = StepCosts(gpu("h100"), MODEL, 1, IDEAL, window_frames=0)
    assert costs.flow([4000]) * 989e12 / (2 * 4000 * 16) < 0.78 * per_frame + 2 * h * 4000


def test_more_work_never_takes_less_time():
    costs = StepCosts(gpu("l4"), MODEL, 30)
    assert costs.llm_step(0, 1) <= costs.llm_step(0, 64) <= costs.llm_step(512, 64)
    assert costs.speech([48]) <= costs.speech([48, 48]) <= costs.speech([168, 168])
    assert costs.encode(1.0) <= costs.encode(31.0)


@pytest.mark.parametrize("policy", [None, FcfsPolicy])
def test_light_load_is_served_at_once(policy):
    outcome = simulation(policy).run(1.0, seconds=25, warm_up=2)
    assert outcome.requests > 5 and outcome.viability == 1 and outcome.preemptions == 0
    assert 0.05 < outcome.ttfa["p50"] < 0.4
    assert outcome.ttft["p50"] < outcome.ttfa["p50"]
    assert sum(outcome.busy.values()) <= 1.0


def test_same_seed_same_outcome():
    runs = [simulation().run(3.0, seconds=12, warm_up=2, seed=5) for _ in range(2)]
    assert runs[0] == runs[1]


def test_overload_shows_in_first_audio_and_gaps():
    light, heavy = (simulation(evaluations=30).run(rate, seconds=20, warm_up=4) for rate in (2.0, 30.0))
    assert heavy.ttfa["p95"] > 3 * light.ttfa["p95"] and heavy.viability < 0.9 < light.viability
    assert heavy.bottleneck == "dit"


def test_too_few_pages_are_named_memory():
    tight = simulation(FcfsPolicy, max_sequences=64)
    tight.kv_budget = lambda: 100 * 16 * 70e3
    outcome = tight.run(6.0, seconds=15, warm_up=3)
    assert outcome.bottleneck == "memory" and outcome.pages_used_peak > 0.9


def test_deadlines_beat_first_come_first_served_on_first_audio_at_medium_load():
    ours, baseline = (simulation(policy).run(6.0, seconds=30, warm_up=5) for policy in (None, FcfsPolicy))
    assert ours.viability >= baseline.viability >= 0.99
    assert ours.ttfa["p95"] < 0.85 * baseline.ttfa["p95"]


def test_search_brackets_the_limit():
    outcome = simulation().run(1.0, seconds=6, warm_up=1)

    def run(rate: float):
        return replace(outcome, rate=rate, viability=1.0 if rate <= 7.3 else 0.5, ttfa={"p95": 0.1})

    best, runs = find_capacity(run, 1.0, tolerance=0.01)
    assert 7.2 < best.rate <= 7.3 and [o.rate for o in runs] == sorted(o.rate for o in runs)
    with pytest.raises(ValueError, match="not even one"):
        find_capacity(lambda rate: replace(outcome, rate=rate, viability=0.0), 1.0)


def test_audible_growth_lets_every_piece_cover_the_next():
    sizes = [SPEECH.chunk_size(index) for index in range(7)]
    assert sizes == [12, 9, 13, 19, 28, 36, 36]
    assert replace(SPEECH, chunk_growth=None).chunk_size(1) == 36


def test_unknown_gpu_is_refused():
    with pytest.raises(ConfigError, match="h100"):
        gpu("gtx")


def test_command_prints_and_writes_what_it_simulated(tmp_path, capsys):
    from benchmarks.capacity import main

    out = tmp_path / "capacity.json"
    arguments = "--gpu h100 --arrivals regular --evaluations 10 --seconds 8 --rate 4 --max-ttfa 0.3 --tolerance 2.5"
    assert main([*arguments.split(), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "SIMULATED" in printed and "Assumptions:" in printed
    result = json.loads(out.read_text())
    assert result["simulated"] and {r["policy"] for r in result["rows"]} == {"deadline", "fcfs"}
    assert all(math.isfinite(r["streams_held"]) for r in result["rows"])
    assert out.with_suffix(".png").stat().st_size > 10_000
