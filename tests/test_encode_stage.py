"""Encoders beside the language model: nobody's answer changes, nobody waits without need, a bad recording hurts its own request."""

from __future__ import annotations

import numpy as np
import pytest

from antiphon.deltas import TextDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.errors import EngineError
from antiphon.execution.audio_encoder import AudioEncoder, Encoding
from antiphon.request import GenerationRequest, sampling_params


def sound(seconds: float, seed: int) -> dict:
    samples = np.random.default_rng(seed).standard_normal(int(seconds * 16000)) * 0.1
    return {"role": "user", "message_type": "audio", "content": (samples, 16000)}


def request(message: dict, seed: int, limit: int = 12) -> GenerationRequest:
    return GenerationRequest([message], "text", sampling_params(text_temperature=0.8, max_new_tokens=limit, seed=seed))


HELLO = {"role": "user", "message_type": "text", "content": "hello"}
REQUESTS = [request(sound(1.0, 1), 1), request(HELLO, 2), request(sound(2.5, 2), 3), request(sound(0.4, 3), 4)]


@pytest.fixture
def slow(monkeypatch):
    """Encoders that are done a few looks later; the numbers of looks so far."""
    looks = {}

    def ready(encoding) -> bool:
        looks[encoding] = looks.get(encoding, 0) + 1
        return looks[encoding] > 6

    monkeypatch.setattr(Encoding, "ready", property(ready))
    return looks


def answers(engine, requests) -> tuple[list[str], list[str]]:
    """Texts by request, and the ids in the order in which they began to speak."""
    ids = [engine.add(r) for r in requests]
    words, order = dict.fromkeys(ids, ""), []
    while engine.has_work:
        for request_id, delta in engine.step():
            assert not isinstance(delta, Exception), delta
            if isinstance(delta, TextDelta):
                words[request_id] += delta.text
                order += [request_id] * (request_id not in order)
    engine.check()
    return list(words.values()), order


def test_encoders_that_take_many_steps_change_no_answer(tiny_runtime, slow):
    late, order = answers(Engine(tiny_runtime, EngineConfig(encode_seconds=2.0)), REQUESTS)
    assert len(slow) >= 2 and max(slow.values()) > 3, "the language model went on while recordings were encoded"
    assert order[0] == "request-2", "text alone has nothing to wait for"
    slow.clear()
    alone = [answers(Engine(tiny_runtime, EngineConfig()), [r])[0][0] for r in REQUESTS]
    assert late == alone and all(late)


def test_with_nothing_else_to_do_the_engine_waits_for_the_encoders(tiny_runtime, slow):
    engine = Engine(tiny_runtime, EngineConfig())
    engine.add(request(sound(1.0, 1), 1))
    engine.step()
    assert engine.scheduler.requests and not engine.encoding.lives


def test_a_request_that_is_dropped_meanwhile_gets_nothing(tiny_runtime, slow):
    engine = Engine(tiny_runtime, EngineConfig())
    engine.add(request(HELLO, 2))
    engine.step()
    gone, stays = engine.add(request(sound(1.0, 1), 1)), engine.add(request(sound(0.5, 2), 1))
    engine.step()
    assert {live.request_id for live in engine.encoding.lives} == {gone, stays}
    assert engine.abort(gone)
    while engine.has_work:
        assert all(i != gone or not isinstance(delta, TextDelta) for i, delta in engine.step())
    engine.check()


@pytest.mark.parametrize("where", ["start", "results"])
def test_a_recording_that_cannot_be_encoded_ends_its_request_alone(tiny_runtime, monkeypatch, where):
    start, results = AudioEncoder.start, Encoding.results

    def broken_start(encoder, recordings, flags=None):
        encoding = start(encoder, recordings, flags)
        encoding.bad = any(len(samples) == 16000 for samples in recordings)
        if where == "start" and encoding.bad:
            raise RuntimeError("out of memory")
        return encoding

    def broken_results(encoding):
        if where == "results" and encoding.bad:
            raise RuntimeError("out of memory")
        return results(encoding)

    monkeypatch.setattr(AudioEncoder, "start", broken_start)
    monkeypatch.setattr(Encoding, "results", broken_results)
    engine = Engine(tiny_runtime, EngineConfig())
    bad, good = engine.add(request(sound(1.0, 1), 1)), engine.add(request(sound(0.5, 2), 1))
    outcome = {bad: [], good: []}
    while engine.has_work:
        for request_id, delta in engine.step():
            outcome[request_id].append(delta)
    assert isinstance(outcome[bad][-1], EngineError) and "out of memory" in str(outcome[bad][-1])
    assert any(isinstance(delta, TextDelta) for delta in outcome[good])
    engine.check()
