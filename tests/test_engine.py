"""The engine: same tokens as alone in any mix, cancellation, errors, books."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from antiphon.deltas import AudioDelta, FinishDelta, TextDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.errors import AudioError, ConfigError, InputError, OverloadedError
from antiphon.models.dual_qwen import DualQwen
from antiphon.request import GenerationRequest, sampling_params


def text(words, role="user"):
    return {"role": role, "message_type": "text", "content": words}


def sound(seconds, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "role": "user",
        "message_type": "audio",
        "content": (rng.standard_normal(int(seconds * 16000)) * 0.1, 16000),
    }


def request(messages, output_type="text", *, seed=0, limit=20, temperature=0.8, **how):
    sampling = sampling_params(
        text_temperature=temperature, audio_temperature=temperature, audio_top_k=10, max_new_tokens=limit, seed=seed
    )
    return GenerationRequest(messages, output_type, sampling, **how)


def run(engine, *ids):
    """Step until all is done; deltas by request."""
    seen = {}
    for _ in range(10_000):
        if not engine.has_work:
            break
        for request_id, delta in engine.step():
            seen.setdefault(request_id, []).append(delta)
    assert not engine.has_work
    engine.check()
    return [seen[i] for i in ids]


def answer(deltas):
    """Text, samples and usage of one request's deltas."""
    assert isinstance(deltas[-1], FinishDelta)
    words = "".join(d.text for d in deltas if isinstance(d, TextDelta))
    pcm = np.concatenate([np.zeros(0, np.float32), *(d.pcm for d in deltas if isinstance(d, AudioDelta))])
    return words, pcm, deltas[-1].usage.steps


REQUESTS = [
    request([text("What is the capital of France?")], "text", seed=1),
    request([sound(0.6)], "both", seed=2, limit=50),
    request([text("hello"), text("hi", "assistant"), sound(0.3, 1)], "both", seed=3, limit=44),
    request([text("Compare"), sound(1.0, 2)], "text", seed=4, temperature=0.0),
    request([text("hello"), text("hi", "assistant"), text("more")], "both", seed=5, limit=40),
]


@pytest.fixture(scope="module")
def alone(tiny_runtime):
    """Every request's answer from an engine of its own."""
    answers = []
    for one in REQUESTS:
        engine = Engine(tiny_runtime, EngineConfig(max_sequences=1, prefix_caching=False))
        answers.append(answer(run(engine, engine.add(one))[0]))
    return answers


def check_same(got, expected):
    words, pcm, steps = got
    assert words == expected[0] and steps == expected[2]
    np.testing.assert_allclose(pcm, expected[1], atol=2e-5)


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(max_sequences=8),
        EngineConfig(max_sequences=2, token_budget=7),
        EngineConfig(max_sequences=5, kv_pages=9, token_budget=16),
        EngineConfig(max_sequences=8, keep_text_branch=True),
    ],
    ids=["together", "small chunks", "page pressure", "text branch kept"],
)
def test_a_mix_gives_every_request_its_own_answer(tiny_runtime, alone, config):
    engine = Engine(tiny_runtime, config)
    ids = [engine.add(one) for one in REQUESTS]
    for deltas, expected in zip(run(engine, *ids), alone, strict=True):
        check_same(answer(deltas), expected)
    if config.kv_pages is not None:
        assert engine.scheduler.num_preemptions > 0, "the pages were meant to run out"


def test_the_prefix_cache_changes_nothing_but_the_work(tiny_runtime, alone):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=2))
    for _ in range(2):
        ids = [engine.add(one) for one in REQUESTS]
        results = run(engine, *ids)
        for deltas, expected in zip(results, alone, strict=True):
            check_same(answer(deltas), expected)
    assert any(deltas[-1].usage.cached_tokens > 0 for deltas in results)


def test_abort_at_every_stage_frees_everything(tiny_runtime):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=4))
    for steps in (0, 1, 5, 30, 38):
        ids = [engine.add(one) for one in REQUESTS]
        for _ in range(steps):
            engine.step()
        for request_id in ids:
            engine.abort(request_id)
        engine.step()
        assert not engine.live and not engine.has_work
        engine.check()
        assert engine.abort(ids[0]) is False


def test_an_error_of_one_request_leaves_the_others_alone(tiny_runtime, alone):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=8))
    good = [engine.add(one) for one in REQUESTS]
    bad = engine.add(request([sound(0.6)], "both", seed=2, limit=50, noise=[np.zeros((3, 80), np.float32)]))
    *results, failed = run(engine, *good, bad)
    assert isinstance(failed[-1], InputError) and "(3, 80)" in str(failed[-1])
    for deltas, expected in zip(results, alone, strict=True):
        check_same(answer(deltas), expected)


def test_wrong_requests_are_refused_before_they_are_accepted(tiny_runtime):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=1, max_waiting=1))
    for bad, error in [
        (request([{"role": "robot", "message_type": "text", "content": "x"}]), InputError),
        (request([text("x")], stop=("",)), InputError),
        (request([text("x")], "speech"), InputError),
        (request([{"role": "user", "message_type": "audio", "content": "no/such/file.wav"}]), AudioError),
    ]:
        with pytest.raises(error):
            engine.add(bad)
    engine.add(request([text("x")]))
    engine.add(request([text("x")]))
    with pytest.raises(OverloadedError):
        engine.add(request([text("x")]))
    with pytest.raises(ConfigError):
        EngineConfig(max_sequences=8, token_budget=4)


def test_a_stop_text_ends_the_answer(tiny_runtime, alone):
    words = alone[3][0]
    stop = words[2:4]
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=1))
    one = request(REQUESTS[3].messages, "text", seed=4, temperature=0.0, stop=(stop,))
    got = answer(run(engine, engine.add(one))[0])
    assert got[0] == words[: words.index(stop)] and got[2] < alone[3][2]


@pytest.fixture
def adapted(monkeypatch):
    """Sizes of the calls of the adaptor."""
    sizes, adapt = [], DualQwen.adapt
    monkeypatch.setattr(DualQwen, "adapt", lambda self, rows: sizes.append(len(rows)) or adapt(self, rows))
    return sizes


def test_a_next_turn_computes_only_what_is_new(tiny_runtime, adapted):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=1, keep_text_branch=True))
    first = engine.add(request([sound(2.0)], "both", limit=30))
    live = engine.live[first]
    run(engine, first)
    history = engine.conversation(live)
    assert adapted == [25], "2 s are 25 feature rows"
    before = engine.runner.counters.trunk_rows
    second = engine.add(request([text("and again?")], "both", limit=1, history=history))
    finish = run(engine, second)[0][-1]
    computed = engine.runner.counters.trunk_rows - before
    new = finish.usage.prompt_tokens - len(history)
    assert finish.usage.cached_tokens == finish.usage.prompt_tokens - computed
    assert computed <= new + 2, "the last pair of the answer was never computed; all else is cached"
    assert adapted == [25], "all positions with features are cached"


@pytest.mark.parametrize("budget", [8, 512])
def test_features_of_a_next_turn_are_adapted_where_they_are_not_cached(tiny_runtime, adapted, budget):
    """Two turns with sound: the second adapts its own rows alone, in the steps that compute them, and says the same."""
    answers = {}
    for caching in (True, False):
        config = EngineConfig(max_sequences=1, token_budget=budget, keep_text_branch=True, prefix_caching=caching)
        engine = Engine(tiny_runtime, config)
        first = engine.add(request([sound(2.0)], "both", limit=30))
        live = engine.live[first]
        run(engine, first)
        adapted.clear()
        again = request([sound(1.2, 5)], "both", limit=30, history=engine.conversation(live))
        answers[caching] = answer(run(engine, engine.add(again))[0])
        assert sum(adapted) == (15 if caching else 40) and max(adapted) <= budget
        assert len(adapted) >= (2 if budget == 8 else 1)
    check_same(answers[True], answers[False])


def test_a_history_with_features_of_another_model_is_refused_alone(tiny_runtime):
    engine = Engine(tiny_runtime, EngineConfig(max_sequences=2))
    first = engine.add(request([sound(0.5)], limit=3))
    live = engine.live[first]
    run(engine, first)
    history = engine.conversation(live)
    audio = dataclasses.replace(history.audios[0], features=history.audios[0].features[:, :-1])
    history = dataclasses.replace(history, audios=(audio,))
    good, bad = engine.add(request([text("hello")])), engine.add(request([text("and?")], history=history))
    good, bad = run(engine, good, bad)
    assert isinstance(good[-1], FinishDelta) and isinstance(bad[-1], InputError)
