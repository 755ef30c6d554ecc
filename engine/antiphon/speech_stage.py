"""The second stage of the engine: speech tokens of all requests to sound, many streams in one solve, by deadline."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .config import SAMPLE_RATE_OUT
from .errors import AntiphonError, EngineError, InputError
from .execution.side_stream import Arrivals
from .live_request import LiveRequest
from .scheduler import PlaybackClock, SpeechJob
from .speech import SpeechStream, SpeechWork, StreamingDetokenizer

logger = logging.getLogger(__name__)


class Spoken(NamedTuple):
    """What a step made of one request: samples (possibly none), or the error that ended it."""

    live: LiveRequest
    result: np.ndarray | AntiphonError


@dataclass
class _Voice:
    """One request that speaks. ``pending``: tokens that its stream has not got yet; ``ended``: no more will come.

    ``missing``: with so many of them its stream must be looked at: it has none yet, or may have a chunk then.
    """

    live: LiveRequest
    clock: PlaybackClock = field(default_factory=PlaybackClock)
    pending: list[int] = field(default_factory=list)
    missing: int = 1
    ended: bool = False
    stream: SpeechStream | None = None

    @property
    def play_end(self) -> float:
        return -math.inf if self.clock.end is None else self.clock.end


@dataclass
class _Flight:
    """A solve that has been handed to the device: its requests, the mel frames of their chunks, and when it began."""

    voices: dict[str, _Voice]
    arrivals: Arrivals
    frames: list[int]
    started: float


class SpeechStage:
    """Owner of the detokenizer and of every request's playback clock.

    A request gets a stream of the detokenizer with its first token, or when one becomes free: its tokens wait until then.

    Args:
        choose: picks, of the chunks that are ready, those that are solved together now; none if they can wait.
        observe: is told the mel frames of the chunks of a solve, and its seconds.
        clock: seconds, the same as the scheduler's.
    """

    def __init__(
        self,
        detokenizer: StreamingDetokenizer,
        choose: Callable[[list[SpeechJob]], list[SpeechJob]],
        observe: Callable[[list[int], float], None],
        clock: Callable[[], float],
    ):
        self.detokenizer = detokenizer
        self._choose, self._observe = choose, observe
        self.clock = clock
        self._voices: dict[str, _Voice] = {}
        self._due: dict[str, _Voice] = {}
        self._ready: dict[str, _Voice] = {}
        self._flight: _Flight | None = None

    def push(self, live: LiveRequest, token: int) -> None:
        """One more speech token of a request."""
        voice = self._voices.get(live.request_id)
        if voice is None:
            voice = self._voices[live.request_id] = _Voice(live)
        voice.pending.append(token)
        if len(voice.pending) >= voice.missing:
            self._due[live.request_id] = voice

    def end(self, live: LiveRequest) -> None:
        """No token will follow; nothing happens for a request that never spoke."""
        if voice := self._voices.get(live.request_id):
            voice.ended = True
            self._due[live.request_id] = voice

    def is_done(self, live: LiveRequest) -> bool:
        """Whether all sound of a request is out (or it has none)."""
        voice = self._voices.get(live.request_id)
        if voice is None:
            return True
        in_flight = self._flight is not None and self._flight.voices.get(live.request_id) is voice
        return voice.stream is not None and voice.stream.done and not in_flight

    def drop(self, live: LiveRequest) -> None:
        """Forget a request, at any moment between two steps, and free what it holds."""
        voice = self._voices.pop(live.request_id, None)
        self._due.pop(live.request_id, None)
        self._ready.pop(live.request_id, None)
        if voice is not None and voice.stream is not None:
            voice.stream.close()

    def play_end(self, live: LiveRequest) -> float:
        """When the request's listener runs out of sound; -inf before the first sound."""
        voice = self._voices.get(live.request_id)
        return -math.inf if voice is None else voice.play_end

    def tokens_needed(self, live: LiveRequest) -> int:
        """Speech tokens that must still come before the request's next chunk is ready."""
        voice, options = self._voices.get(live.request_id), live.prepared.request.speech
        if voice is not None and voice.stream is not None:
            return max(0, voice.stream.tokens_needed - len(voice.pending))
        return max(0, options.first_chunk + (not options.eager) - (len(voice.pending) if voice else 0))

    def step(self, wait: bool = True) -> list[Spoken]:
        """Hand out what has been made, then solve the chunks that are due.

        A solve may take many steps of the language model: without ``wait`` it runs beside them (where the device can), and
        its sound is handed out by a later call.
        """
        spoken = self._feed() + self._land(wait)
        if self._flight is not None or not self._ready:
            return spoken
        jobs = [self._job(voice) for name, voice in self._voices.items() if name in self._ready]
        work = {}
        for job in self._choose(jobs):
            voice = self._voices[job.request_id]
            work[job.request_id] = (voice.stream, *voice.stream.pop())
            self._look(voice)
        frames = {job.request_id: job.frames for job in jobs}
        started = time.perf_counter()
        arrivals = self._solve(work, spoken)
        if arrivals is not None:
            voices = {i: self._voices[i] for i in work}
            self._flight = _Flight(voices, arrivals, [frames[i] for i in work], started)
        return spoken + self._land(wait)

    def _land(self, wait: bool) -> list[Spoken]:
        """The sound of the solve under way, if it is there or ``wait``; requests that were dropped meanwhile get none."""
        flight = self._flight
        if flight is None or not (wait or flight.arrivals.ready):
            return []
        self._flight = None
        present = {i: voice for i, voice in flight.voices.items() if self._voices.get(i) is voice}
        try:
            pieces = flight.arrivals.arrays()
        except Exception as error:
            logger.exception("a speech step failed; its %d requests end with an error", len(flight.voices))
            problem = EngineError(f"the speech step failed: {error}")
            return [Spoken(voice.live, problem) for voice in present.values()]
        self._observe(flight.frames, time.perf_counter() - flight.started)
        pairs = zip(flight.voices.items(), pieces, strict=True)
        return [self._spoken(voice, piece) for (i, voice), piece in pairs if i in present]

    def check(self) -> None:
        """AssertionError unless every open stream belongs to a request, and every chunk that is ready is known."""
        held = sum(voice.stream is not None and not voice.stream.closed for voice in self._voices.values())
        ready = {name for name, voice in self._voices.items() if voice.stream is not None and voice.stream.ready}
        assert ready == set(self._ready), "a chunk is ready and nobody knows"
        assert all(voice.stream is not None or name in self._due for name, voice in self._voices.items())
        pool = self.detokenizer.pool
        assert pool.num_free + held == pool.num_slots, f"{held} streams are held, {pool.num_free} are free"

    def _feed(self) -> list[Spoken]:
        """Hand waiting tokens to the streams that they may complete a chunk of, opening those for which there is room;
        whoever began to speak first comes first."""
        failed = []
        for name, voice in list(self._due.items()):
            try:
                if voice.stream is None and self.detokenizer.pool.num_free:
                    voice.stream = self._open(voice.live)
                if voice.stream is None:
                    continue
                del self._due[name]
                if voice.stream.done:
                    continue
                if voice.pending:
                    voice.stream.push(voice.pending)
                    voice.pending.clear()
                if voice.ended:
                    voice.stream.finish()
                self._look(voice)
            except AntiphonError as error:
                self._due.pop(name, None)
                failed.append(Spoken(voice.live, error))
        return failed

    def _look(self, voice: _Voice) -> None:
        """A stream got tokens or gave a chunk: whether it has one now, and when to look again."""
        voice.missing = max(1, voice.stream.tokens_needed)
        if voice.stream.ready:
            self._ready[voice.live.request_id] = voice
        else:
            self._ready.pop(voice.live.request_id, None)

    def _open(self, live: LiveRequest) -> SpeechStream:
        request = live.prepared.request
        seed = live.prepared.seed if request.noise is None else None
        return self.detokenizer.open(request.speech, seed=seed, noise=request.noise)

    def _job(self, voice: _Voice) -> SpeechJob:
        live = voice.live
        return SpeechJob(
            live.request_id, voice.stream.next_frames, voice.play_end, live.arrival, live.prepared.request.priority
        )

    def _solve(self, work: dict[str, SpeechWork], failed: list[Spoken]) -> Arrivals | None:
        """Start every chunk of ``work``; a request whose noise does not fit moves from ``work`` to ``failed``."""
        while work:
            try:
                return self.detokenizer.start(list(work.values()))
            except InputError as error:
                culprit = next(i for i, (stream, _, _) in work.items() if stream is error.stream)
                del work[culprit]
                failed.append(Spoken(self._voices[culprit].live, error))
            except Exception as error:
                logger.exception("a speech step failed; its %d requests end with an error", len(work))
                problem = EngineError(f"the speech step failed: {error}")
                failed += [Spoken(self._voices[i].live, problem) for i in work]
                work.clear()
        return None

    def _spoken(self, voice: _Voice, piece: np.ndarray) -> Spoken:
        if len(piece):
            voice.clock.emitted(self.clock(), len(piece) / SAMPLE_RATE_OUT)
        return Spoken(voice.live, piece)
