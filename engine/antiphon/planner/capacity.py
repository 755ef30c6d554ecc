"""How many conversations a GPU can hold: the real scheduler and policy on a virtual clock.

Requests arrive at random, are encoded, decoded and spoken in the order that the engine's loop has (encode one recording,
one language-model step, one batch of speech chunks), and every piece of work advances the clock by its roofline time.
Tokens do not matter and are not computed. Everything that comes out is a simulation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from ..config import FRAMES_PER_TOKEN
from ..scheduler import (
    KVPools,
    Policy,
    RequestState,
    Scheduler,
    SchedulerConfig,
    SpeechJob,
    StepPlan,
    StepResults,
)
from ..speech.options import SpeechOptions
from .simulated_load import PARTS, TOKEN_SECONDS, Limits, Outcome, Stream, Workload
from .step_costs import StepCosts


class Simulation:
    """One device. ``policy`` is made per run by ``make_policy``."""

    def __init__(
        self,
        costs: StepCosts,
        make_policy: Callable[[], Policy],
        workload: Workload | None = None,
        speech: SpeechOptions | None = None,
        limits: Limits | None = None,
    ):
        self.costs = costs
        self.make_policy = make_policy
        self.workload = workload if workload is not None else Workload()
        self.speech = speech if speech is not None else SpeechOptions()
        self.limits = limits if limits is not None else Limits()
        self.delay = costs.model.llm.audio_delay

    def kv_budget(self) -> float:
        """Bytes left for keys and values beside weights, flow windows of every stream and the reserve."""
        fixed = self.costs.total_weight_bytes + self.limits.reserve_bytes
        return self.costs.gpu.memory - fixed - self.limits.max_sequences * self.costs.window_bytes

    def run(
        self, rate: float, seconds: float = 90.0, warm_up: float = 20.0, seed: int = 0, arrivals: str = "poisson"
    ) -> Outcome:
        """Arrivals at ``rate`` per second for so long; the requests after ``warm_up`` count."""
        self._reset(rate, seconds, seed, arrivals)
        while self.now < seconds + 20 and (self.arrivals or self.door or self.live):
            begin = self.now
            self._arrive()
            self._encode()
            self._think()
            self._speak()
            if self.now == begin:
                self.now = self.arrivals[0].arrival if self.arrivals else seconds + 20
        return self._outcome(rate, seconds, warm_up)

    # -- set-up ----------------------------------------------------------------------------------------------------

    def _reset(self, rate: float, seconds: float, seed: int, arrivals: str) -> None:
        limits = self.limits
        pools = KVPools.from_budget(int(self.kv_budget()), *self.costs.kv_page_bytes)
        config = SchedulerConfig(limits.token_budget, limits.max_sequences, limits.max_positions)
        self.policy = self.make_policy()
        self.scheduler = Scheduler(config, pools, self.policy)
        self.random = np.random.default_rng(seed)
        self.streams = self._draw_arrivals(rate, seconds, arrivals)
        self.arrivals = deque(self.streams)
        self.door: list[Stream] = []
        self.live: dict[str, Stream] = {}
        self.ready: dict[str, Stream] = {}
        self.by_slot: list[Stream | None] = [None] * limits.max_sequences
        self.steps_of_slot = np.zeros((3, limits.max_sequences), np.int64)
        self.now = 0.0
        self.busy = dict.fromkeys(PARTS, 0.0)
        self.pages: list[float] = []
        self.num_blocked = self.num_steps = self.num_tokens = 0

    def _draw_arrivals(self, rate: float, seconds: float, arrivals: str) -> list[Stream]:
        count = int(rate * seconds * 2) + 50
        gaps = self.random.exponential(1 / rate, count) if arrivals == "poisson" else np.full(count, 1 / rate)
        times = np.cumsum(gaps)
        return [self._draw(index, float(t)) for index, t in enumerate(times[times < seconds])]

    def _draw(self, index: int, arrival: float) -> Stream:
        w = self.workload
        question, answer = np.exp(self.random.normal(0, w.spread, 2)) * (w.question_median, w.answer_median)
        answer = min(float(answer), 60.0)
        text_steps = max(2, int(answer * w.text_rate))
        speaks = self.random.random() >= w.text_share
        steps = self.delay + max(1, round(answer / TOKEN_SECONDS)) if speaks else text_steps
        return Stream(str(index), arrival, min(float(question), 60.0), steps, text_steps, speaks)

    # -- the engine's loop -----------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        while self.arrivals and self.arrivals[0].arrival <= self.now:
            self.door.append(self.arrivals.popleft())

    def _encode(self) -> None:
        """Encode the shortest waiting recording, unless every voice is taken."""
        if not self.door or len(self.live) >= self.limits.max_sequences:
            return
        stream = min(self.door, key=lambda s: (s.question, s.arrival))
        self.door.remove(stream)
        self._spend("encode", self.costs.encode(stream.question))
        length = self.workload.prompt_extra + round(stream.question / TOKEN_SECONDS)
        audio, text = self.random.integers(0, 1 << 40, (2, length))
        kind = "both" if stream.speaks else "text"
        self.live[stream.name] = stream
        self.scheduler.add(
            RequestState(
                stream.name, audio, text, output_type=kind, max_new_tokens=stream.steps, arrival=stream.arrival
            )
        )
        if stream.speaks:
            self.scheduler.set_playback(stream.name, -math.inf, self._next_chunk_at(stream))

    def _think(self) -> None:
        plan = self.scheduler.schedule(self.now)
        if plan is None:
            return
        for assignment in plan.assigned:
            self._take_slot(assignment.request_id, assignment.slot)
        self._spend("llm", self._step_seconds(plan))
        slots = plan.slots[plan.samples]
        generated = plan.num_generated[plan.samples] + 1
        needed, total, text_steps = self.steps_of_slot[:, slots]
        nothing = np.zeros(len(slots), np.int64)
        finished = generated >= total
        self._note_progress(slots, generated, finished, needed)
        self.scheduler.commit(plan, StepResults(nothing, nothing, generated >= text_steps, finished))
        self.num_steps += 1
        self.num_tokens += len(slots)
        self.num_blocked += self.scheduler.table.admission_blocked
        self.pages.append(max(pool.num_used / pool.num_pages for pool in self.scheduler.memory.pools.groups))

    def _take_slot(self, name: str, slot: int) -> None:
        stream = self.live[name]
        self.by_slot[slot] = stream
        self.steps_of_slot[:, slot] = self._next_chunk_at(stream), stream.steps, stream.text_steps

    def _note_progress(
        self, slots: np.ndarray, generated: np.ndarray, finished: np.ndarray, needed: np.ndarray
    ) -> None:
        """First tokens, streams whose next chunk is complete, and streams whose last token came."""
        for index in np.flatnonzero((generated == 1) | finished | (generated >= needed)).tolist():
            stream = self.by_slot[slots[index]]
            stream.generated, stream.llm_done = int(generated[index]), bool(finished[index])
            if stream.generated == 1:
                stream.first_token = self.now
            if not stream.speaks:
                if stream.llm_done:
                    self._finish(stream)
            elif stream.llm_done or stream.generated >= self._next_chunk_at(stream):
                self.ready[stream.name] = stream

    def _speak(self) -> None:
        if not self.ready:
            return
        work = {name: self._chunk(stream) for name, stream in self.ready.items()}
        jobs = [self._job(self.ready[name], *chunk) for name, chunk in work.items()]
        oldest = min((s.arrival for s in self._unheard_prompts()), default=math.inf)
        chosen = self.policy.choose_speech(self.now, jobs, self.scheduler.table, oldest, self.limits.max_speech_batch)
        if not chosen:
            return
        frames = [job.frames for job in chosen]
        self._spend("dit", self.costs.flow(frames) + self.costs.efficiency.speech_overhead)
        self._spend("vocoder", self.costs.vocoder(sum(frames)))
        for job in chosen:
            self._emit(self.ready.pop(job.request_id), *work[job.request_id])

    def _unheard_prompts(self) -> list[Stream | RequestState]:
        """Requests whose prompts are not computed yet, in whatever stage."""
        return [*self.door, *self.scheduler.prefilling.values(), *(entry[-1] for entry in self.scheduler.waiting)]

    def _emit(self, stream: Stream, new: int, final: bool) -> None:
        kept = stream.carried + new - (0 if final else self.speech.look_ahead)
        stream.carried = 0 if final else self.speech.look_ahead
        stream.consumed += new
        stream.num_chunks += 1
        stream.clock.emitted(self.now, kept * TOKEN_SECONDS)
        if stream.num_chunks == 1:
            stream.first_audio = self.now
        if final:
            self._finish(stream)
            return
        self.scheduler.set_playback(stream.name, stream.clock.end, self._next_chunk_at(stream))
        state = self.scheduler.requests.get(stream.name)
        if state is not None and state.slot >= 0:
            self.steps_of_slot[0, state.slot] = self._next_chunk_at(stream)
            stream.generated = state.num_generated
        if stream.llm_done or stream.generated >= self._next_chunk_at(stream):
            self.ready[stream.name] = stream

    def _finish(self, stream: Stream) -> None:
        stream.done = True
        del self.live[stream.name]

    # -- arithmetic ------------------------------------------------------------------------------------------------

    def _spend(self, part: str, seconds: float) -> None:
        self.busy[part] += seconds
        self.now += seconds

    def _next_chunk_at(self, stream: Stream) -> int:
        """Pairs that must exist before the next chunk can be solved; out of reach for text."""
        if not stream.speaks:
            return 1 << 40
        return self.delay + stream.consumed + self.speech.chunk_size(stream.num_chunks)

    def _chunk(self, stream: Stream) -> tuple[int, bool]:
        """New tokens of the chunk that is ready, and whether it is the last."""
        size = self.speech.chunk_size(stream.num_chunks)
        left = stream.steps - self.delay - stream.consumed
        return (left, True) if stream.llm_done and left <= size else (size, False)

    def _job(self, stream: Stream, new: int, final: bool) -> SpeechJob:
        end = -math.inf if stream.clock.end is None else stream.clock.end
        return SpeechJob(stream.name, (stream.carried + new) * FRAMES_PER_TOKEN, end, stream.arrival)

    def _step_seconds(self, plan: StepPlan) -> float:
        rows = plan.lengths
        sampled = plan.samples
        speaking = sampled & plan.run_audio & (plan.num_generated >= self.delay)
        return self.costs.step(
            plan.num_rows,
            int(rows[plan.run_text].sum()),
            int(rows[plan.run_audio].sum()),
            int((sampled & plan.run_text).sum()),
            int(speaking.sum()),
            int((plan.starts + rows).sum()),
        )

    def _outcome(self, rate: float, seconds: float, warm_up: float) -> Outcome:
        counted = [s for s in self.streams if warm_up <= s.arrival < seconds - 5]
        speaking = [s for s in counted if s.speaks]
        pieces = sum(max(0, s.clock.num_pieces - 1) for s in speaking)
        late = sum(s.clock.num_late for s in speaking)
        held = sum(_overlap(s, warm_up, seconds) for s in self.streams) / (seconds - warm_up)
        return Outcome(
            rate=rate,
            requests=len(counted),
            ttfa=_percentiles([s.first_audio - s.arrival for s in speaking], self.now),
            ttft=_percentiles([s.first_token - s.arrival for s in counted], self.now),
            viability=1 - late / max(1, pieces),
            streams_without_gap=sum(not s.clock.num_late for s in speaking) / max(1, len(speaking)),
            streams_held=held,
            tokens_per_second=self.num_tokens / self.now,
            pages_used_mean=float(np.mean(self.pages)) if self.pages else 0.0,
            pages_used_peak=max(self.pages, default=0.0),
            preemptions=self.scheduler.num_preemptions,
            blocked_share=self.num_blocked / max(1, self.num_steps),
            busy={part: used / self.now for part, used in self.busy.items()},
        )


def find_capacity(
    run: Callable[[float], Outcome],
    low: float,
    max_ttfa: float = 1.0,
    min_viability: float = 0.99,
    tolerance: float = 0.05,
) -> tuple[Outcome, list[Outcome]]:
    """The highest arrival rate with a p95 first-audio time and a viability within bounds; and every run on the way.

    Doubles from ``low``, then bisects until the bounds differ by ``tolerance``.
    """
    runs: list[Outcome] = []

    def holds(rate: float) -> bool:
        outcome = run(rate)
        runs.append(outcome)
        return outcome.viability >= min_viability and outcome.ttfa["p95"] <= max_ttfa

    while not holds(low):
        low /= 2
        if low < 1e-3:
            raise ValueError("not even one request in 1000 s can be served within the bounds")
    high = low * 2
    while holds(high):
        low, high = high, high * 2
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    best = max((o for o in runs if o.rate <= low), key=lambda o: o.rate)
    return best, sorted(runs, key=lambda o: o.rate)


def _overlap(stream: Stream, begin: float, end: float) -> float:
    """Seconds inside the window in which this stream's listener hears sound or waits for more of it."""
    if math.isnan(stream.first_audio) or stream.clock.end is None:
        return 0.0
    return max(0.0, min(end, stream.clock.end) - max(begin, stream.first_audio))


def _percentiles(values: list[float], now: float) -> dict[str, float]:
    """p50, p95, p99; requests that never got there count as infinitely late."""
    finite = np.array([math.inf if math.isnan(value) else value for value in values])
    if not len(finite):
        return {"p50": math.nan, "p95": math.nan, "p99": math.nan}
    return {f"p{q}": float(np.percentile(finite, q, method="higher")) for q in (50, 95, 99)}
