"""What crosses the border to an engine in its own thread or process: commands in, events out. All picklable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .config import LlmConfig
from .deltas import Delta
from .errors import AntiphonError
from .request import GenerationRequest


@dataclass(frozen=True, eq=False)
class Submit:
    """Run a request. history: an encoded conversation before its messages; keep: send the conversation back at its end."""

    request_id: str
    request: GenerationRequest
    history: bytes | None = None
    keep: bool = False


@dataclass(frozen=True)
class Abort:
    """End a request, whatever its stage; unknown ids are ignored."""

    request_id: str


@dataclass(frozen=True)
class Shutdown:
    """End the engine; requests in flight are dropped."""


Command = Submit | Abort | Shutdown


@dataclass(frozen=True)
class EngineInfo:
    """What a client may know of a loaded model; ``llm`` is None for an engine without one."""

    model: str
    can_speak: bool
    max_positions: int
    llm: LlmConfig | None = None


@dataclass(frozen=True)
class Statistics:
    """Gauges and counters of an engine. pages: by group, ``total``, ``used``, ``cached``, ``free``."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    pages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """The engine is loaded, which took ``load_seconds``, and takes requests."""

    info: EngineInfo
    load_seconds: float = 0.0


@dataclass(frozen=True)
class Accepted:
    """A request was checked and is queued: no error of the caller can follow."""

    request_id: str


@dataclass(frozen=True, eq=False)
class Emitted:
    """A delta of a request; a ``FinishDelta`` is its last event."""

    request_id: str
    delta: Delta


@dataclass(frozen=True, eq=False)
class Kept:
    """The encoded conversation of a request, just before its ``FinishDelta``; its prompt has ``prompt_len`` positions."""

    request_id: str
    conversation: bytes
    prompt_len: int


@dataclass(frozen=True, eq=False)
class Failed:
    """The error that ended a request."""

    request_id: str
    error: AntiphonError


@dataclass(frozen=True)
class Died:
    """The engine is gone with everything it held. ``final``: it will not come back."""

    reason: str
    final: bool = False


Event = Ready | Accepted | Emitted | Kept | Failed | Died | Statistics
Deliver = Callable[[list[Event]], None]


def portable(error: AntiphonError) -> AntiphonError:
    """The error with nothing but its type and message, so that it can be pickled."""
    return type(error)(str(error))
