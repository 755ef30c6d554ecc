"""Random mixes: whatever runs beside a request, its token streams are those it gets alone, and its sound agrees.

Arrival times, order, output types, sampling, cancellations, page pressure that forces preemption and shared prefixes are
drawn at random; pages, slots and voices must balance after every mix.
"""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from antiphon.deltas import AudioDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.request import GenerationRequest, sampling_params
from antiphon.speech import SpeechOptions
from antiphon_kernels import native

NUM_MIXES, MIXES_PER_TEST = 200, 10
SPEECH = SpeechOptions(first_chunk=14, chunk=20, look_ahead=4, ode_steps=3)


def absolute(messages, folder):
    """Messages whose recordings are full paths."""
    out = []
    for message in messages:
        content = message["content"]
        if message["message_type"] == "audio":
            content = str(folder / content)
        elif message["message_type"] == "audio-text":
            content = [str(folder / content[0]), content[1]]
        out.append({**message, "content": content})
    return out


class Drive:
    """Runs an engine and keeps every request's streams and sound."""

    def __init__(self, engine):
        self.engine, self.live, self.sound = engine, {}, {}

    def add(self, request):
        request_id = self.engine.add(request)
        self.live[request_id], self.sound[request_id] = self.engine.live[request_id], [np.zeros(0, np.float32)]
        return request_id

    def step(self):
        for request_id, delta in self.engine.step():
            assert not isinstance(delta, Exception), delta
            if isinstance(delta, AudioDelta):
                self.sound[request_id].append(delta.pcm)

    def finish(self):
        for _ in range(20_000):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "a request is stuck"
        self.engine.check()

    def result(self, request_id):
        streams = self.live[request_id].streams
        return streams.text, streams.audio, np.concatenate(self.sound[request_id])


@pytest.fixture(scope="module")
def conversations(golden, recordings):
    found = {p["name"]: p["messages"] for p in json.loads((golden / "prompts.json").read_text())}
    return {name: absolute(m, recordings.folder) for name, m in found.items() if recordings.has(m)}


def test_golden_prompts_all_at_once(tiny_runtime, golden, conversations):
    runs = [r for r in json.loads((golden / "llm_greedy.json").read_text()) if r["steps"] <= 200]
    runs = [r for r in runs if r["prompt"] in conversations]
    arrays = np.load(golden / "llm_greedy.npz")
    drive = Drive(Engine(tiny_runtime, EngineConfig(max_sequences=12, token_budget=200)))
    ids = {}
    for run in runs:
        limit = -1 if run["entry"] == "generate" else run["max_new_tokens"]
        sampling = sampling_params(max_new_tokens=limit, seed=0, **run["sampling"])
        ids[run["run"]] = drive.add(
            GenerationRequest(conversations[run["prompt"]], run["output_type"], sampling, SPEECH)
        )
    drive.finish()
    for name, request_id in ids.items():
        text, audio, _ = drive.result(request_id)
        assert text == arrays[f"{name}.text_stream"].tolist(), name
        assert audio == arrays[f"{name}.audio_stream"].tolist(), name


@pytest.fixture(scope="module")
def pool(tiny_runtime, conversations):
    """Requests, greedy and sampled, some with common prefixes, with their answers alone."""
    names = [
        "text_only",
        "multi_turn_text",
        "starts_with_assistant",
        "assistant_parts",
        "empty_text",
        "audio_then_text",
    ]
    pairs = []
    for seed, name in enumerate([n for n in names if n in conversations] * 2):
        for output_type, temperature in (("text", 0.0), ("both", 0.9)):
            sampling = sampling_params(
                text_temperature=temperature, audio_temperature=temperature, audio_top_k=20, text_top_k=8,
                text_repetition_penalty=1.1, text_repetition_window_size=4, max_new_tokens=24 + seed, seed=seed,
            )  # fmt: skip
            request = GenerationRequest(conversations[name], output_type, sampling, SPEECH)
            alone = Drive(Engine(tiny_runtime, EngineConfig(max_sequences=1, prefix_caching=False)))
            request_id = alone.add(request)
            alone.finish()
            pairs.append((request, alone.result(request_id)))
    return pairs


@pytest.mark.parametrize("first", range(0, NUM_MIXES, MIXES_PER_TEST))
def test_random_mixes(tiny_runtime, pool, first):
    preemptions = hits = cancelled = 0
    for seed in range(first, first + MIXES_PER_TEST):
        rng = random.Random(seed)
        engine = Engine(tiny_runtime, random_config(rng, launch=1))
        cancelled += run_mix(rng, Drive(engine), pool)
        preemptions += engine.scheduler.num_preemptions
        hits += engine.scheduler.memory.cache.statistics.hit_rate > 0
    print(f"{preemptions} preemptions, {hits} mixes with shared prefixes, {cancelled} cancelled")
    assert preemptions and hits, "the mixes were meant to press on pages and to share prefixes"


@pytest.mark.parametrize("first", range(NUM_MIXES, NUM_MIXES + 3 * MIXES_PER_TEST, MIXES_PER_TEST))
def test_random_mixes_in_launches(tiny_runtime, pool, first):
    """With several decode steps in a row, as many as the engine chooses: fewer steps of it for the same tokens."""
    launches = 0
    for seed in range(first, first + MIXES_PER_TEST):
        rng = random.Random(seed)
        engine = Engine(tiny_runtime, random_config(rng, launch=None))
        plans = watched_plans(engine)
        run_mix(rng, Drive(engine), pool)
        launches += sum(plan is not None and plan.steps > 1 for plan in plans)
    print(f"{launches} launches of several steps")
    assert launches == 0 if not native.available else launches > 0


def watched_plans(engine):
    """The plans that the engine's scheduler makes from now on."""
    plans, schedule = [], engine.scheduler.schedule
    engine.scheduler.schedule = lambda *arguments: plans.append(schedule(*arguments)) or plans[-1]
    return plans


def random_config(rng, launch):
    return EngineConfig(
        decode_steps_per_launch=launch,
        max_sequences=rng.randint(2, 6),
        token_budget=rng.choice([8, 16, 64, 256]),
        kv_pages=rng.choice([8, 9, 10, 14, 60]),
        max_voices=rng.choice([None, 1, 2]),
        prefix_caching=rng.random() < 0.8,
        keep_text_branch=rng.random() < 0.3,
    )


def run_mix(rng, drive, pool):
    """Add requests at random moments, cancel some; the others must match. Returns how many were cancelled."""
    waiting, eager = [rng.choice(pool) for _ in range(rng.randint(3, 6))], rng.choice([0.1, 0.5, 1.0])
    running, doomed = [], {}
    while waiting or drive.engine.has_work:
        if waiting and rng.random() < eager:
            request, expected = waiting.pop()
            request_id = drive.add(request)
            running.append((request_id, expected))
            if rng.random() < 0.2:
                doomed[request_id] = rng.randint(0, 30)
        drive.step()
        for request_id in [i for i, left in doomed.items() if left == 0]:
            drive.engine.abort(request_id)
        doomed = {i: left - 1 for i, left in doomed.items()}
    drive.finish()
    aborted = 0
    for request_id, (text, audio, sound) in running:
        if drive.live[request_id].generation.reason == "abort":
            aborted += 1
            continue
        got = drive.result(request_id)
        assert got[0] == text and got[1] == audio
        np.testing.assert_allclose(got[2], sound, atol=2e-5)
    return aborted
