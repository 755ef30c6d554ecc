"""A request inside the engine: checked input, then prompt, then streams, until its last delta."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .errors import ConfigError, InputError
from .generation import Generation
from .prompt import Message, Prompt, load_recordings, parse_messages, wants_features
from .request import GenerationRequest, step_limit
from .runtime import Runtime
from .scheduler import FeatureSpan, RequestState
from .streams import TokenStreams


@dataclass(frozen=True, eq=False)
class PreparedRequest:
    """A request that was checked and whose recordings were decoded: nothing in it can be the caller's fault any more.

    recordings: float32 [N] at 16 kHz each; with_features: whether each one's continuous features are used.
    """

    request: GenerationRequest
    messages: list[Message]
    recordings: list[np.ndarray]
    with_features: list[bool]
    prompt_len: int
    seed: int


def prepare(request: GenerationRequest, runtime: Runtime) -> PreparedRequest:
    """Check a request and decode its recordings; touches no engine state, so any thread may run it.

    Raises:
        InputError (AudioError, PromptTooLongError), ConfigError: with what was expected and what came.
    """
    request.sampling.check()
    if request.output_type == "both" and not runtime.can_speak:
        raise ConfigError(
            "output_type='both' needs the detokenizer, but the model was loaded with load_detokenizer=False; "
            "load it with load_detokenizer=True, or ask for output_type='text'"
        )
    if any(not text for text in request.stop):
        raise InputError("stop: an empty text would end every answer at once; leave it out")
    messages = parse_messages(request.messages)
    recordings = load_recordings(messages)
    lengths = [len(samples) for samples in recordings]
    length = runtime.builder.check_length(messages, lengths, request.output_type)
    length += len(request.history) if request.history is not None else 0
    step_limit(length, request.output_type, request.sampling.max_new_tokens, runtime.config.llm)
    seed = request.sampling.resolved_seed()
    return PreparedRequest(request, messages, recordings, wants_features(messages), length, seed)


class LiveRequest:
    """Mutable state of one accepted request. The engine alone touches it.

    ``prompt``, ``feature_rows`` and ``state`` (the scheduler's) are set when its recordings are encoded.
    """

    def __init__(self, request_id: str, prepared: PreparedRequest, runtime: Runtime, clock: Callable[[], float]):
        self.request_id = request_id
        self.prepared = prepared
        self.speaks = prepared.request.output_type == "both"
        self.arrival = clock()
        self.generation = Generation(
            runtime.config.llm, runtime.tokenizer, prepared.prompt_len, prepared.request.stop, clock
        )
        self.prompt: Prompt | None = None
        self.feature_rows: np.ndarray | None = None
        self.state: RequestState | None = None

    @property
    def seconds_of_audio(self) -> float:
        """Length of its recordings, for the order of encoding."""
        return sum(len(samples) for samples in self.prepared.recordings) / 16_000

    @property
    def streams(self) -> TokenStreams:
        """Both streams as far as they were drawn."""
        if self.state is None:
            return TokenStreams([], [])
        rows = self.state.rows(self.state.prompt_len, self.state.num_generated)
        return TokenStreams(rows[:, 1].tolist(), rows[:, 0].tolist())

    def features(self, rows: np.ndarray) -> list[Tensor]:
        """Encoder features behind consecutive positions of the prompt with these ``feature_rows``, as views."""
        used = rows[rows >= 0]
        if not len(used):
            return []
        start, stop, first, parts = int(used[0]), int(used[-1]) + 1, 0, []
        for audio in self.prompt.audios:
            low, high = max(start - first, 0), min(stop - first, audio.num_tokens)
            if low < high:
                parts.append(audio.features[low:high])
            first += audio.num_tokens
        return parts


def check_features(prompt: Prompt, width: int) -> None:
    """InputError unless every recording has the features that the adaptor takes: one row of ``width`` per token."""
    for audio in prompt.audios:
        shape = None if audio.features is None else tuple(audio.features.shape)
        if shape != (audio.num_tokens, width):
            raise InputError(f"a recording of the history has features {shape}, expected {(audio.num_tokens, width)}")


def feature_spans(prompt: Prompt) -> list[FeatureSpan]:
    """Where the continuous features of each recording stand in the prompt, keyed by the recording's content."""
    spans, first_row = [], 0
    rows = prompt.feature_rows.numpy()
    for audio in prompt.audios:
        start = int(np.flatnonzero(rows == first_row)[0])
        spans.append(FeatureSpan(start, audio.num_tokens, audio.content_hash))
        first_row += audio.num_tokens
    return spans
