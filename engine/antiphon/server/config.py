"""Everything a server can be told, with defaults; from a YAML file, the command line, or code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError


@dataclass(frozen=True)
class ServerConfig:
    """Options of ``antiphon serve``; durations in seconds, sizes in bytes.

    host, port: where to listen. served_name: the model's name in the API; empty: the folder's name.
    engine: ``process`` (watched and restarted) or ``thread``.
    api_keys: accepted keys; none: no key is asked for. api_keys_file: more of them, one a line, # for comments.
    cors_origins: origins of browsers that may call; ``*`` for any.
    max_upload_bytes: largest request body. max_audio_seconds: recordings of one chat request together.
    max_transcription_seconds: one recording to transcribe. max_messages: messages of one chat request.
    max_in_flight: requests under way, queued ones included; more get 429. max_sessions: realtime connections.
    max_session_seconds: a realtime connection ends after this. idle_timeout: and after so long without an event.
    request_timeout: one answer. drain_timeout: what is under way at SIGTERM has so long to end.
    store: where conversations are kept (``memory``, a file, or ``redis://…``). conversation_ttl: how long.
    audio_url_hosts: hosts from which ``audio_url`` may be fetched; none: ``audio_url`` is refused.
    audio_url_private: allow addresses that are not public; for tests and closed networks.
    first_chunk, chunk, chunk_growth, look_ahead, ode_steps, overlap: as ``SpeechOptions``.
    realtime_beta: realtime events under their beta names. log_level: of the server and the engine.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_name: str = ""
    engine: str = "process"
    api_keys: tuple[str, ...] = ()
    api_keys_file: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_upload_bytes: int = 64 << 20
    max_audio_seconds: float = 600.0
    max_transcription_seconds: float = 3600.0
    max_messages: int = 256
    max_in_flight: int = 256
    max_sessions: int = 64
    max_session_seconds: float = 3600.0
    idle_timeout: float = 900.0
    request_timeout: float = 600.0
    drain_timeout: float = 30.0
    store: str = "memory"
    conversation_ttl: float = 3600.0
    audio_url_hosts: tuple[str, ...] = ()
    audio_url_private: bool = False
    first_chunk: int = 18
    chunk: int = 30
    chunk_growth: float | None = 2.0
    look_ahead: int = 12
    ode_steps: int = 29
    overlap: str = "lookahead"
    realtime_beta: bool = False
    log_level: str = "info"

    def __post_init__(self) -> None:
        if self.engine not in ("process", "thread"):
            raise ConfigError(f"engine must be 'process' or 'thread', got {self.engine!r}")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be from 0 to 65535, got {self.port}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and not value > 0:
                raise ConfigError(f"{field.name} must be above 0, got {value!r}")

    def keys(self) -> tuple[str, ...]:
        """All accepted keys. ConfigError if the file cannot be read or has none."""
        if self.api_keys_file is None:
            return self.api_keys
        try:
            lines = Path(self.api_keys_file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"api_keys_file {self.api_keys_file}: {error.strerror}") from error
        found = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
        if not found:
            raise ConfigError(f"api_keys_file {self.api_keys_file} holds no key; nobody could call the server")
        return self.api_keys + found


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. ConfigError if it cannot be read or is none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    return values


def with_options(config: ServerConfig, options: Mapping[str, Any]) -> ServerConfig:
    """``config`` with some fields replaced; ConfigError names an unknown one or one of the wrong kind."""
    known = {field.name: getattr(config, field.name) for field in fields(ServerConfig)}
    changes = {}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; known are {', '.join(known)}")
        changes[name] = _fitted(name, value, getattr(ServerConfig, name))
    return replace(config, **changes)


def _fitted(name: str, value: Any, default: Any) -> Any:
    """``value`` as the kind of its default."""
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{name} must be a list of texts, got {value!r}")
        return tuple(value)
    if value is None and name in ("api_keys_file", "chunk_growth"):
        return None
    expected = {bool: bool, int: int, float: (int, float), str: str}.get(type(default), (str, int, float))
    if not isinstance(value, expected) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ConfigError(f"{name} must be like {default!r}, got {value!r}")
    return float(value) if isinstance(default, float) else value
