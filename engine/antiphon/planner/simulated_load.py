"""What a capacity simulation is asked and what it answers: workload, limits, streams, figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..scheduler import PlaybackClock

TOKEN_SECONDS = 0.08
ARRIVALS = ("poisson", "regular")
PARTS = ("encode", "llm", "dit", "vocoder")


@dataclass(frozen=True)
class Workload:
    """Spoken questions and answers. Lengths are log-normal around their medians (seconds).

    text_rate: text tokens per second of answer. text_share: requests that want text only.
    """

    question_median: float = 4.0
    answer_median: float = 10.0
    spread: float = 0.5
    text_rate: float = 3.5
    text_share: float = 0.0
    prompt_extra: int = 12

    @property
    def answer_mean(self) -> float:
        """Mean seconds of an answer."""
        return self.answer_median * math.exp(self.spread**2 / 2)


@dataclass(frozen=True)
class Limits:
    """The engine's limits, and the device memory kept for activations and graphs."""

    max_sequences: int = 256
    token_budget: int = 2048
    max_speech_batch: int = 32
    max_positions: int = 2048
    reserve_bytes: float = 6e9


@dataclass
class Stream:
    """One simulated request. ``generated``: pairs so far; audio token k is pair k + delay."""

    name: str
    arrival: float
    question: float
    steps: int
    text_steps: int
    speaks: bool
    first_token: float = math.nan
    first_audio: float = math.nan
    generated: int = 0
    llm_done: bool = False
    consumed: int = 0
    carried: int = 0
    num_chunks: int = 0
    done: bool = False
    clock: PlaybackClock = field(default_factory=PlaybackClock)


@dataclass(frozen=True)
class Outcome:
    """Figures of one run over the requests that arrived inside the window; times in seconds."""

    rate: float
    requests: int
    ttfa: dict[str, float]
    ttft: dict[str, float]
    viability: float
    streams_without_gap: float
    streams_held: float
    tokens_per_second: float
    pages_used_mean: float
    pages_used_peak: float
    preemptions: int
    blocked_share: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """What ran out first: "memory" if requests waited for pages or slots, else the part that kept the device busiest."""
        if self.preemptions or self.blocked_share > 0.05:
            return "memory"
        return max(self.busy, key=self.busy.__getitem__)
