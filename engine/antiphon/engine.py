"""The engine: many requests in flight, each getting exactly the tokens it would have got alone.

One :meth:`Engine.step` is *encode → think → speak → emit*: recordings of new requests go through the encoders, one ragged
step of the language model runs, chunks of speech that are due are solved and vocoded, and what came of it is returned.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from antiphon_kernels import Stop, native

from .conversation import Conversation
from .deltas import Delta
from .encode_stage import EncodeStage
from .engine_config import EngineConfig, kv_sizes, resolve
from .engine_memory import captured_rows, check_fits, engine_memory
from .errors import AntiphonError, ConfigError, EngineError, OverloadedError
from .execution.audio_encoder import EncodedAudio
from .execution.graphs import Graphs, graphs_for
from .execution.llm_runner import LlmRunner, StepOutput
from .live_request import LiveRequest, PreparedRequest, check_features, feature_spans, prepare
from .request import GenerationRequest, step_limit
from .runtime import Runtime
from .scheduler import (
    DeadlineOptions,
    DeadlinePolicy,
    KVPools,
    LinearCostModel,
    Policy,
    RequestState,
    Scheduler,
    SchedulerConfig,
    SequencePlan,
    SpeechJob,
    StepPlan,
    StepResults,
)
from .speech import StreamingDetokenizer
from .speech_stage import SpeechStage
from .step_builder import PromptChunk, StepBuilder
from .streams import SlotStreams

logger = logging.getLogger(__name__)
RUNNING = int(Stop.RUNNING)


class Output(NamedTuple):
    """One event of one request: a delta, or the error that ended it."""

    request_id: str
    delta: Delta | AntiphonError


_output = partial(tuple.__new__, Output)
"""From (request id, delta). Every row of every step makes one, and the class's own constructor takes twice as long."""


class Engine:
    """Add requests, then call :meth:`step` until :attr:`has_work` is false. Not thread-safe: see ``AsyncEngine``.

    Args:
        runtime: the loaded model.
        config: limits; "auto" values are resolved here, see :attr:`config`.
        policy: who goes first; default: by the deadlines of those who listen.
        clock: seconds, for arrival order and timings.
        graphs: how decode steps, solves and vocoder passes are captured; default: CUDA graphs on CUDA, else not at all.
    """

    def __init__(
        self,
        runtime: Runtime,
        config: EngineConfig | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.perf_counter,
        graphs: Graphs | None = None,
    ):
        self.runtime = runtime
        native_steps, drafts = runtime.device.type == "cpu" and native.available, runtime.draft is not None
        self.config = resolve(
            config or EngineConfig(), runtime.config.llm, runtime.dtype, native=native_steps, drafts=drafts
        )
        self.clock = clock
        llm, sizes = runtime.config.llm, kv_sizes(self.config)
        self.memory = engine_memory(runtime, self.config)
        logger.info("memory plan\n%s", "\n".join(self.memory.lines()))
        check_fits(self.memory, runtime)
        graphs = graphs_for(runtime.device) if graphs is None else graphs
        self.runner = LlmRunner.build(
            runtime.llm, sizes, self.config.max_sequences, runtime.dtype, graphs, self.config.attention, runtime.draft
        )
        if runtime.device.type == "cuda" and self.runner.graphs is not None:
            steps = (1, self.config.decode_steps_per_launch)
            self.runner.graphs.prepare(captured_rows(self.config), self.runner.graphs.widths[:1], steps)
        in_one_graph = self.config.max_sequences <= self.runner.max_launch
        if drafts and not in_one_graph:
            raise ConfigError(
                f"a draft needs native steps of all requests at once, at most {self.runner.max_launch} here; max_sequences "
                f"is {self.config.max_sequences}: lower it, or load the model without a draft"
            )
        self._max_steps = self.config.decode_steps_per_launch if in_one_graph else 1
        self._cost = LinearCostModel()
        self.scheduler = Scheduler(
            SchedulerConfig(
                token_budget=self.config.token_budget,
                max_sequences=self.config.max_sequences,
                max_positions=llm.max_positions,
                prefix_caching=self.config.prefix_caching,
                shorter_launches=native_steps,
            ),
            KVPools(sizes.trunk, sizes.text, sizes.audio),
            policy if policy is not None else DeadlinePolicy(self._deadlines(), self._cost),
        )
        self.speech = None
        if runtime.can_speak:
            detokenizer = StreamingDetokenizer(
                runtime.flow, runtime.vocoder, self.config.max_voices, graphs and graphs.fork()
            )
            self.speech = SpeechStage(detokenizer, self._choose_speech, self._cost.observe_speech, clock)
        self.live: dict[str, LiveRequest] = {}
        self.encoding = EncodeStage(runtime.encoder, self.config.encode_seconds)
        self._outputs: list[Output] = []
        self._builder = StepBuilder(self.config.max_sequences, self._prompt_chunk, runtime.llm)
        self._streams = SlotStreams(llm, self.config.max_sequences)
        self._in_slot: list[LiveRequest | None] = [None] * self.config.max_sequences
        self._ids = itertools.count(1)

    def _deadlines(self) -> DeadlineOptions:
        """A draft proposes within a launch, so launches are worth their wait however slow a step is."""
        return DeadlineOptions(min_launch=self._max_steps if self.runtime.draft is not None else 1)

    # -- the caller's side ---------------------------------------------------------------------------------------

    def add(self, request: GenerationRequest | PreparedRequest, request_id: str | None = None) -> str:
        """Accept a request; returns its id.

        Raises:
            InputError, ConfigError: as :func:`prepare` says. OverloadedError: the queue is full; try again later.
        """
        if len(self.live) >= self.config.max_waiting + self.config.max_sequences:
            raise OverloadedError(f"{len(self.live)} requests are waiting or running, the limit; try again later")
        prepared = prepare(request, self.runtime) if isinstance(request, GenerationRequest) else request
        request_id = f"request-{next(self._ids)}" if request_id is None else request_id
        if request_id in self.live:
            raise EngineError(f"request id {request_id!r} is already in use; choose another")
        live = LiveRequest(request_id, prepared, self.runtime, self.clock)
        self.live[request_id] = live
        self.encoding.add(live)
        return request_id

    def abort(self, request_id: str) -> bool:
        """End a request now, wherever it is, and free everything it holds; False if it is not there (any more)."""
        live = self.live.get(request_id)
        if live is None:
            return False
        self._drop(live)
        live.generation.reason = "abort"
        self._outputs.append(Output(request_id, live.generation.finish(live.streams)))
        return True

    @property
    def has_work(self) -> bool:
        """Whether a step would do or return anything."""
        return bool(self.live or self._outputs)

    def step(self) -> list[Output]:
        """Do one round of work; returns what became ready."""
        self._encode()
        busy = self._think() or self._encode(wait=True)
        self._speak(wait=not busy)
        outputs, self._outputs = self._outputs, []
        return outputs

    def check(self) -> None:
        """AssertionError unless all books balance: pages, slots, voices. For tests and idle time."""
        self.scheduler.check()
        if self.speech is not None:
            self.speech.check()

    def conversation(self, live: LiveRequest) -> Conversation:
        """What was said so far in a request, for a next turn; complete once it is finished."""
        return Conversation.after(live.prompt, live.streams, self.runtime.config.llm)

    # -- encode --------------------------------------------------------------------------------------------------

    def _encode(self, wait: bool = False) -> bool:
        """Requests whose recordings are encoded go to the scheduler; True if there were any. ``wait``: for the encoders."""
        done = self.encoding.step(wait)
        for live, result in done:
            if isinstance(result, EngineError):
                self._fail(live, result)
            else:
                self._guarded(live, lambda live, result=result: self._start(live, result))
        return bool(done)

    def _start(self, live: LiveRequest, audios: list[EncodedAudio]) -> None:
        """Recordings to prompt; then the request belongs to the scheduler."""
        prepared, request = live.prepared, live.prepared.request
        prompt = self.runtime.builder.build(prepared.messages, audios, request.output_type)
        live.prompt = request.history.before(prompt) if request.history is not None else prompt
        live.generation.encoded()
        check_features(live.prompt, self.runtime.config.llm.adaptor_input_dim)
        live.feature_rows = live.prompt.feature_rows.numpy()
        limit = step_limit(
            len(live.prompt), request.output_type, request.sampling.max_new_tokens, self.runtime.config.llm
        )
        state = RequestState(
            live.request_id,
            live.prompt.audio_ids.numpy(),
            live.prompt.text_ids.numpy(),
            output_type=request.output_type,
            max_new_tokens=limit,
            features=feature_spans(live.prompt),
            priority=request.priority,
            arrival=live.arrival,
            keep_text_pages=self.config.keep_text_branch,
            cache_salt=request.cache_salt,
        )
        live.state = self.scheduler.add(state)
        if live.speaks:
            self._tell_playback(live)

    # -- think ---------------------------------------------------------------------------------------------------

    def _think(self) -> bool:
        """One ragged step of the language model, or several decode steps in a row; False if there is nothing to compute."""
        plan = self.scheduler.schedule(self.clock(), 1 if self.encoding.lives else self._max_steps)
        if plan is None:
            return False
        try:
            self._assign(plan)
            started = self.clock()
            outputs = self.runner.start(self._builder.build(plan), plan.steps).outputs()
        except Exception as error:
            logger.exception("step %d failed; its %d requests end with an error", plan.step, len(plan.request_ids))
            self.scheduler.discard(plan)
            for request_id in plan.request_ids:
                self._fail(self.live[request_id], EngineError(f"the model step failed: {error}"))
            return True
        seconds = (self.clock() - started) / plan.steps
        self._cost.observe_llm_step(plan.num_rows - plan.num_decodes, plan.num_decodes, seconds)
        for step, output in enumerate(outputs):
            self._commit(plan, output, step)
        return True

    def _assign(self, plan: StepPlan) -> None:
        """Set up the slots that changed hands, and the pages that a request shares in part."""
        for request_id, slot, num_generated in plan.assigned:
            live = self.live[request_id]
            sampling, state = live.prepared.request.sampling, live.state
            self.runner.state.open(slot, sampling, live.prepared.seed, live.speaks, state.max_new_tokens)
            live.generation.cached_tokens = max(live.generation.cached_tokens, state.num_cached_tokens)
            self._in_slot[slot] = live
            streams = live.streams
            self._streams.open(slot, streams.text)
            if num_generated:
                self.runner.state.restore(slot, streams.text, streams.audio)
        if plan.copies:
            copies = [[(c.source, c.target) for c in plan.copies if (c.group == 0) == trunk] for trunk in (True, False)]
            self.runner.copy_pages(*copies)

    def _prompt_chunk(self, sequence: SequencePlan) -> PromptChunk:
        """Tape rows of a prefill; behind the prompt (recomputed answers) there are no features."""
        live = self.live[sequence.request_id]
        rows = live.state.rows(sequence.start, sequence.length)
        features = live.feature_rows[sequence.start : sequence.start + sequence.length]
        if len(features) < sequence.length:
            features = np.pad(features, (0, sequence.length - len(features)), constant_values=-1)
        return PromptChunk(rows[:, 0], rows[:, 1], features, live.features(features))

    def _commit(self, plan: StepPlan, output: StepOutput, step: int) -> None:
        """Tell the scheduler which pairs were drawn; new text goes out, speech tokens go on, ends end.

        ``step`` of the plan; whoever ended in an earlier one drew nothing.
        """
        drawn = plan.samples.nonzero()[0]
        columns = [np.array(c, np.int64) for c in (output.text, output.audio, output.stop, output.text_ended)]
        if step:
            running = self.scheduler.table.decoding[plan.slots[drawn]]
            drawn, columns = drawn[running], [column[running] for column in columns]
        slots = plan.slots[drawn]
        text, audio, stop, text_ended = columns
        self._builder.last_audio[slots], self._builder.last_text[slots] = audio, text
        ended = stop != RUNNING
        results = StepResults(text, audio, text_ended, ended)
        if step:
            self.scheduler.commit_next(slots, results)
        else:
            self.scheduler.commit(plan, results)
        said, spoken = self._streams.push(slots, plan.num_generated[drawn] + step, text, audio)
        ends = dict(zip(slots[ended].tolist(), stop[ended].tolist(), strict=True)) if ended.any() else {}
        self._say(slots[said].tolist(), text[said].tolist(), ends)
        if spoken.any():
            self._sound(slots[spoken].tolist(), audio[spoken])
        for slot, code in ends.items():
            self._end(self._in_slot[slot], Stop(code))

    def _say(self, slots: list[int], text_ids: list[int], ends: dict[int, int]) -> None:
        """New text of one step; a stop text in it adds its slot to ``ends``."""
        in_slot, outputs = self._in_slot, self._outputs
        for slot, text_id in zip(slots, text_ids, strict=True):
            live = in_slot[slot]
            generation = live.generation
            new = generation.say(text_id)
            if new:
                outputs.append(_output((live.request_id, generation.text_delta(new))))
            if generation.stopped:
                ends.setdefault(slot, RUNNING)

    def _sound(self, slots: list[int], audio_ids: np.ndarray) -> None:
        """New speech tokens of one step, for those who are to be heard."""
        tokens = (audio_ids - self.runtime.config.llm.audio_token_offset).tolist()
        for slot, token in zip(slots, tokens, strict=True):
            live = self._in_slot[slot]
            if live.speaks:
                self.speech.push(live, token)

    def _end(self, live: LiveRequest, stop: Stop) -> None:
        """Both token streams are over: by the model's end, a limit, or (while the model goes on) a stop text."""
        if stop is Stop.RUNNING:
            self.scheduler.abort(live.request_id, "stop")
        if rest := live.generation.end(stop):
            self._outputs.append(Output(live.request_id, live.generation.text_delta(rest)))
        if live.speaks:
            self.speech.end(live)
        self._finish_if_done(live)

    # -- speak ---------------------------------------------------------------------------------------------------

    def _speak(self, wait: bool) -> None:
        """Solve and vocode the chunks that are due, many streams in one batch; beside the next steps unless ``wait``."""
        if self.speech is None:
            return
        for live, result in self.speech.step(wait):
            if isinstance(result, AntiphonError):
                self._fail(live, result)
                continue
            if len(result):
                self._outputs.append(Output(live.request_id, live.generation.audio_delta(result)))
                self._tell_playback(live)
            self._finish_if_done(live)

    def _choose_speech(self, jobs: list[SpeechJob]) -> list[SpeechJob]:
        scheduler = self.scheduler
        prompts = [live.arrival for live in self.encoding.lives] + [s.arrival for s in scheduler.prefilling.values()]
        oldest = min([*prompts, *(entry[1] for entry in scheduler.waiting[:1])], default=math.inf)
        return scheduler.policy.choose_speech(self.clock(), jobs, scheduler.table, oldest, self.config.max_speech_batch)

    def _tell_playback(self, live: LiveRequest) -> None:
        """When this request's listener runs out of sound, and at which step its next chunk will be complete."""
        steps = max(live.state.num_generated, self.runtime.config.llm.audio_delay)
        chunk_steps = steps + self.speech.tokens_needed(live)
        self.scheduler.set_playback(live.request_id, self.speech.play_end(live), chunk_steps)

    # -- emit ----------------------------------------------------------------------------------------------------

    def _finish_if_done(self, live: LiveRequest) -> None:
        """The last delta, once the streams have ended and all sound is out."""
        if live.request_id in self.scheduler.requests or (live.speaks and not self.speech.is_done(live)):
            return
        self._drop(live)
        self._outputs.append(Output(live.request_id, live.generation.finish(live.streams)))

    def _guarded(self, live: LiveRequest, work: Callable[[LiveRequest], None]) -> None:
        """Run one request's own work; an error ends that request alone."""
        try:
            work(live)
        except AntiphonError as error:
            self._fail(live, error)
        except Exception as error:
            logger.exception("request %s failed", live.request_id)
            self._fail(live, EngineError(f"the request failed: {error}"))

    def _fail(self, live: LiveRequest, error: AntiphonError) -> None:
        self._drop(live)
        self._outputs.append(Output(live.request_id, error))

    def _drop(self, live: LiveRequest) -> None:
        """Free everything a request holds, whatever its stage."""
        self.live.pop(live.request_id, None)
        self.encoding.drop(live)
        self.scheduler.abort(live.request_id)
        if self.speech is not None:
            self.speech.drop(live)
