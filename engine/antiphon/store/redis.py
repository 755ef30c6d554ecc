"""Conversations in Redis, shared by many servers; needs the ``redis`` package (extra ``redis``)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..errors import ConfigError
from .base import Entry, StoreError, check_key

try:
    import redis
except ImportError:
    redis = None

PREFIX = "antiphon:conversation:"


class RedisStore:
    """Values under ``antiphon:conversation:<key>``; Redis itself removes what has expired.

    Args:
        url: ``redis://host:port/db``, ``rediss://`` for TLS, or ``unix://path``.

    Raises:
        ConfigError: the package is not installed. StoreError: nobody answers at ``url``.
    """

    def __init__(self, url: str, timeout: float = 5.0):
        if redis is None:
            raise ConfigError("a redis:// store needs the redis package: pip install 'antiphon[redis]'")
        try:
            self._client = redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
        except ValueError as error:
            raise ConfigError(f"store: {error}") from error
        with self._guarded():
            self._client.ping()

    def get(self, key: str) -> Entry | None:
        with self._guarded(), self._client.pipeline(transaction=True) as pipeline:
            value, left = pipeline.get(self._name(key)).pttl(self._name(key)).execute()
        return None if value is None else Entry(value, time.time() + left / 1000)

    def put(self, key: str, value: bytes, ttl: float) -> Entry:
        with self._guarded():
            self._client.set(self._name(key), value, px=max(1, int(ttl * 1000)))
        return Entry(bytes(value), time.time() + ttl)

    def delete(self, key: str) -> bool:
        with self._guarded():
            return bool(self._client.delete(self._name(key)))

    def purge(self) -> int:
        return 0

    def close(self) -> None:
        self._client.close()

    def _name(self, key: str) -> str:
        return PREFIX + check_key(key)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise StoreError(f"the Redis store failed: {error}") from error
