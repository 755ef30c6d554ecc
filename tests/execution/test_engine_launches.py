"""An engine that runs several decode steps per launch gives every request what single steps give it."""

from __future__ import annotations

import numpy as np
import pytest

from antiphon.deltas import AudioDelta, FinishDelta, TextDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.errors import ConfigError
from antiphon.execution.graphs import TapeGraphs
from antiphon.request import GenerationRequest, sampling_params
from antiphon.scheduler import FcfsPolicy
from antiphon.speech import SpeechOptions
from antiphon_kernels import native, use_backend

SPEECH = SpeechOptions(first_chunk=4, chunk=4, look_ahead=2, ode_steps=2)


def request(words: str, output_type: str, seed: int, limit: int, temperature: float = 0.8, stop: tuple[str, ...] = ()):
    sampling = sampling_params(
        text_temperature=temperature, audio_temperature=temperature, audio_top_k=10, max_new_tokens=limit, seed=seed
    )
    message = {"role": "user", "message_type": "text", "content": words}
    return GenerationRequest([message], output_type, sampling, speech=SPEECH, stop=stop)


REQUESTS = [
    request("What is the capital of France?", "text", 1, 21),
    request("hello", "both", 2, 40),
    request("hello", "both", 3, 37, temperature=0.0),
    request("Compare", "text", 4, 7),
    request("Compare", "text", 5, 30, temperature=0.0),
]


class Outcome:
    """What requests got, in full, and how often an engine went to its device."""

    def __init__(self, runtime, requests, launch: int, graphs=None, **config):
        self.engine = Engine(
            runtime,
            EngineConfig(max_sequences=8, decode_steps_per_launch=launch, **config),
            FcfsPolicy(),
            graphs=graphs,
        )
        ids = [self.engine.add(r) for r in requests]
        self.text, self.sound = {i: "" for i in ids}, {i: [np.zeros(0, np.float32)] for i in ids}
        self.finish, self.launches = {}, []
        start = self.engine.runner.start
        self.engine.runner.start = lambda batch, steps=1: self.launches.append(steps) or start(batch, steps)
        while self.engine.has_work:
            for request_id, delta in self.engine.step():
                assert not isinstance(delta, Exception), delta
                self.take(request_id, delta)
        self.engine.check()

    def take(self, request_id, delta) -> None:
        if isinstance(delta, TextDelta):
            self.text[request_id] += delta.text
        elif isinstance(delta, AudioDelta):
            self.sound[request_id].append(delta.pcm)
        elif isinstance(delta, FinishDelta):
            self.finish[request_id] = (delta.reason, delta.usage.text_tokens, delta.usage.audio_tokens)


@pytest.fixture(scope="module")
def single(tiny_runtime):
    return Outcome(tiny_runtime, REQUESTS, 1)


@pytest.mark.parametrize("launch", [2, 5, 16])
def test_the_same_answers(tiny_runtime, single, launch):
    several = Outcome(tiny_runtime, REQUESTS, launch, TapeGraphs())
    assert set(several.launches) == {1, launch} and len(several.launches) < len(single.launches)
    assert several.text == single.text and several.finish == single.finish
    for got, want in zip(several.sound.values(), single.sound.values(), strict=True):
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=2e-5)


@pytest.mark.skipif(not native.available, reason="native module not built")
def test_the_native_step_runs_several_without_graphs(tiny_runtime, single):
    several = Outcome(tiny_runtime, REQUESTS, 8)
    assert set(several.launches) == {1, 8} and len(several.launches) < len(single.launches)
    assert several.text == single.text and several.finish == single.finish
    for got, want in zip(several.sound.values(), single.sound.values(), strict=True):
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), atol=2e-5)  # other chunks share a solve


def test_without_graphs_and_native_steps_they_are_single(tiny_runtime, single):
    with use_backend("reference"):
        plain = Outcome(tiny_runtime, REQUESTS, 8)
    assert set(plain.launches) == {1} and plain.text == single.text


def test_a_stop_text_inside_a_launch_ends_the_answer_there(tiny_runtime, single):
    words = next(iter(single.text.values()))
    stop = words[len(words) // 2 : len(words) // 2 + 1]
    asked = [request("What is the capital of France?", "text", 1, 21, stop=(stop,))]
    one, several = Outcome(tiny_runtime, asked, 1), Outcome(tiny_runtime, asked, 16, TapeGraphs())
    assert list(several.text.values()) == list(one.text.values()) == [words[: words.index(stop)]]
    assert several.finish == one.finish and 16 in several.launches


def test_when_pages_are_short_steps_are_single_again(tiny_runtime, single):
    short = Outcome(tiny_runtime, REQUESTS, 16, TapeGraphs(), kv_pages=8, prefix_caching=False)
    assert short.text == single.text and short.launches.count(1) > 10


@pytest.mark.parametrize("launch", [0, 17])
def test_sizes_that_make_no_sense_are_refused(launch):
    with pytest.raises(ConfigError, match="decode_steps_per_launch"):
        EngineConfig(decode_steps_per_launch=launch)
