"""What an engine gives the same five requests, in full, and how it went to its device for it."""

from __future__ import annotations

import numpy as np

from antiphon.deltas import AudioDelta, FinishDelta, TextDelta
from antiphon.engine import Engine
from antiphon.engine_config import EngineConfig
from antiphon.request import GenerationRequest, sampling_params
from antiphon.scheduler import FcfsPolicy
from antiphon.speech import SpeechOptions

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

    def __init__(self, runtime, requests, launch: int | None, graphs=None, policy=None, **config):
        self.engine = Engine(
            runtime,
            EngineConfig(max_sequences=8, decode_steps_per_launch=launch, **config),
            policy or FcfsPolicy(),
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
