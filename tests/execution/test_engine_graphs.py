"""The whole engine with captured steps, solves and vocoder passes gives what it gives without."""

from __future__ import annotations

import numpy as np

from antiphon.deltas import AudioDelta, TextDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.execution.graphs import TapeGraphs
from antiphon.execution.side_stream import Arrivals
from antiphon.request import GenerationRequest, sampling_params
from antiphon.speech import SpeechOptions


def request(words, output_type, seed, limit):
    sampling = sampling_params(
        text_temperature=0.8, audio_temperature=0.8, audio_top_k=10, max_new_tokens=limit, seed=seed
    )
    message = {"role": "user", "message_type": "text", "content": words}
    speech = SpeechOptions(first_chunk=4, chunk=4, look_ahead=2, ode_steps=3)
    return GenerationRequest([message], output_type, sampling, speech=speech)


REQUESTS = [
    request("What is the capital of France?", "text", 1, 12),
    request("hello", "both", 2, 40),
    request("Compare", "text", 4, 7),
]


def answers(runtime, graphs):
    engine = Engine(runtime, EngineConfig(max_sequences=4), graphs=graphs)
    ids = [engine.add(r) for r in REQUESTS]
    words, pcm = dict.fromkeys(ids, ""), {i: [np.zeros(0, np.float32)] for i in ids}
    while engine.has_work:
        for request_id, delta in engine.step():
            assert not isinstance(delta, Exception), delta
            if isinstance(delta, TextDelta):
                words[request_id] += delta.text
            if isinstance(delta, AudioDelta):
                pcm[request_id].append(delta.pcm)
    engine.check()
    return engine, [words[i] for i in ids], [np.concatenate(pcm[i]) for i in ids]


def test_graphs_change_no_answer(tiny_runtime):
    _, words, sound = answers(tiny_runtime, None)
    engine, graph_words, graph_sound = answers(tiny_runtime, TapeGraphs())
    assert graph_words == words and any(words)
    for got, want in zip(graph_sound, sound):
        np.testing.assert_allclose(got, want, atol=2e-5)
    assert engine.runner.graphs._built, "decode steps were captured"


def test_sound_that_takes_many_steps_changes_no_answer(tiny_runtime, monkeypatch):
    _, words, sound = answers(tiny_runtime, None)
    polls = []

    def ready(arrivals) -> bool:
        polls.append(arrivals)
        return polls.count(arrivals) > 3

    monkeypatch.setattr(Arrivals, "ready", property(ready))
    _, late_words, late_sound = answers(tiny_runtime, None)
    assert late_words == words
    for got, want in zip(late_sound, sound):
        np.testing.assert_array_equal(got, want)
    assert any(polls.count(a) > 3 for a in polls), "the language model went on while sound was made"
