"""The first stage of the engine: recordings of new requests through the encoders, several in one call, the shortest first."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import NamedTuple

from .errors import EngineError
from .execution.audio_encoder import AudioEncoder, EncodedAudio, Encoding
from .live_request import LiveRequest

logger = logging.getLogger(__name__)
CALL_FAILED = "the recordings of %d requests could not be encoded together"


class Encoded(NamedTuple):
    """One request with its encoded recordings, in their order, or the error that ended it."""

    live: LiveRequest
    result: list[EncodedAudio] | EngineError


@dataclass
class _Flight:
    """Requests whose recordings have been handed to the encoders (None: dropped since), and how many recordings each has."""

    lives: list[LiveRequest | None]
    counts: list[int]
    encoding: Encoding


class EncodeStage:
    """Owner of the requests that are not encoded yet. On a GPU the encoders run beside the language model.

    Args:
        seconds: sound that one call encodes at most (one request in any case), so that nobody waits long for the others.
    """

    def __init__(self, encoder: AudioEncoder, seconds: float):
        self.encoder, self.seconds = encoder, seconds
        self._waiting: list[LiveRequest] = []
        self._flight: _Flight | None = None

    def add(self, live: LiveRequest) -> None:
        """A new request."""
        self._waiting.append(live)

    def drop(self, live: LiveRequest) -> None:
        """Forget a request, at any moment between two steps."""
        if live in self._waiting:
            self._waiting.remove(live)
        if self._flight is not None and live in self._flight.lives:
            self._flight.lives[self._flight.lives.index(live)] = None

    @property
    def lives(self) -> list[LiveRequest]:
        """Everybody who is here."""
        flying = self._flight.lives if self._flight is not None else []
        return [*self._waiting, *(live for live in flying if live is not None)]

    def step(self, wait: bool = False) -> list[Encoded]:
        """Who is done: requests without recordings at once, the others when the encoders are; without ``wait`` some later step."""
        done = self._land(wait)
        done += [Encoded(live, []) for live in self._waiting if not live.prepared.recordings]
        self._waiting = [live for live in self._waiting if live.prepared.recordings]
        if self._flight is None and self._waiting:
            done += self._launch(self._choose())
        return done + self._land(wait)

    def _choose(self) -> list[LiveRequest]:
        """The next call's requests, which leave the queue."""
        self._waiting.sort(key=lambda live: (live.prepared.request.priority, live.seconds_of_audio, live.arrival))
        chosen, seconds = [], 0.0
        for live in self._waiting:
            seconds += live.seconds_of_audio
            if chosen and seconds > self.seconds:
                break
            chosen.append(live)
        del self._waiting[: len(chosen)]
        return chosen

    def _launch(self, lives: list[LiveRequest]) -> list[Encoded]:
        """Start one call for all; if it fails at once, who is done or failed."""
        try:
            self._flight = _Flight(list(lives), [len(live.prepared.recordings) for live in lives], self._call(lives))
        except Exception as error:
            logger.exception(CALL_FAILED, len(lives))
            return self._one_by_one(lives, error)
        return []

    def _land(self, wait: bool) -> list[Encoded]:
        """The call under way, if it is done or ``wait``; requests that were dropped meanwhile get nothing."""
        flight = self._flight
        if flight is None or not (wait or flight.encoding.ready):
            return []
        self._flight = None
        lives = [live for live in flight.lives if live is not None]
        try:
            audios = iter(flight.encoding.results())
        except Exception as error:
            logger.exception(CALL_FAILED, len(lives))
            return self._one_by_one(lives, error)
        pieces = [list(itertools.islice(audios, count)) for count in flight.counts]
        return [Encoded(live, piece) for live, piece in zip(flight.lives, pieces, strict=True) if live is not None]

    def _one_by_one(self, lives: list[LiveRequest], error: Exception) -> list[Encoded]:
        """A call failed: every request alone, to find the culprit."""
        if len(lives) > 1:
            return [self._alone(live) for live in lives]
        return [_failed(live, error) for live in lives]

    def _alone(self, live: LiveRequest) -> Encoded:
        try:
            return Encoded(live, self._call([live]).results())
        except Exception as error:
            logger.exception("the recordings of request %s could not be encoded", live.request_id)
            return _failed(live, error)

    def _call(self, lives: list[LiveRequest]) -> Encoding:
        recordings = [samples for live in lives for samples in live.prepared.recordings]
        return self.encoder.start(recordings, [flag for live in lives for flag in live.prepared.with_features])


def _failed(live: LiveRequest, error: Exception) -> Encoded:
    return Encoded(live, EngineError(f"the recordings could not be encoded: {error}"))
