"""A server on the loopback device, in a thread of the test process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from antiphon.server.config import ServerConfig
from antiphon.server.run import server_of


class Live:
    """A running server: its address and its state."""

    def __init__(self, server, thread):
        self.server, self.thread = server, thread
        self.service = server.config.app.state.service
        self.port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = f"{self.url}/v1"

    def http(self, path, body=None, headers=None, method=None):
        """(status, headers, body): json where it is."""
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        kind = {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, kind | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, headers, content = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, headers, content = error.code, error.headers, error.read()
        is_json = "json" in headers.get("content-type", "")
        return status, headers, json.loads(content) if is_json else content.decode()

    def idle(self, seconds=20.0):
        """Wait until nothing is under way, on either side."""
        end = time.monotonic() + seconds
        engine = self.service.engine
        while engine.num_in_flight or engine.statistics.running or engine.statistics.waiting:
            assert time.monotonic() < end, (engine.num_in_flight, engine.statistics)
            time.sleep(0.05)

    def without_sessions(self, seconds=5.0):
        """Wait until every realtime session has ended; its requests leave the engine a moment before it does."""
        end = time.monotonic() + seconds
        while self.service.num_sessions:
            assert time.monotonic() < end, self.service.num_sessions
            time.sleep(0.05)


@contextlib.contextmanager
def live(spec, **options) -> Iterator[Live]:
    """A ready server over ``spec``; ends with the block."""
    options = {"port": 0, "engine": "thread", "log_level": "warning", "drain_timeout": 2.0} | options
    server = server_of(ServerConfig(**options), spec)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    engine = server.config.app.state.service.engine
    end = time.monotonic() + 120
    try:
        while not server.started or engine.state != "ready":
            assert engine.state != "failed" and thread.is_alive() and time.monotonic() < end, engine.state
            time.sleep(0.02)
        yield Live(server, thread)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
