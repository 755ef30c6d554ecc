"""Keys, limits, addresses, health, metrics, death of the engine, draining."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
from live import live

from antiphon.null_engine import NullSpec
from antiphon.server import audio_url
from antiphon.server.errors import ApiError

ASK = {"model": "null", "messages": [{"role": "user", "content": "hello"}]}
SLOW = NullSpec(steps=2000, step_seconds=0.005, max_sequences=64)


def test_health_models_version_metrics(null_server):
    null_server.http("/v1/chat/completions", ASK | {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}})
    assert null_server.http("/health")[2] == {"status": "ok"}
    assert null_server.http("/ready")[2]["status"] == "ready"
    assert null_server.http("/version")[2]["version"]
    assert [one["id"] for one in null_server.http("/v1/models")[2]["data"]] == ["null"]
    assert null_server.http("/v1/models/other")[0] == 404
    text = null_server.http("/metrics")[2]
    for name in ("num_requests_running", "time_to_first_audio_seconds_bucket", "audio_chunks_total", "engine_up 1.0"):
        assert f"antiphon:{name}" in text
    assert null_server.http("/openapi.json")[2]["paths"]["/v1/chat/completions"]


def test_a_key_is_asked_for_and_compared(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# two keys\nfirst-key\n\nsecond-key\n")
    with live(NullSpec(), served_name="null", api_keys_file=str(keys), api_keys=("third",)) as server:
        for key in ("first-key", "second-key", "third"):
            assert server.http("/v1/models", headers={"Authorization": f"Bearer {key}"})[0] == 200
        for header in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer first"}, {"Authorization": "first-key"}):
            status, headers, body = server.http("/v1/models", headers=header)
            assert status == 401 and body["error"]["code"] == "invalid_api_key" and headers["www-authenticate"]
        for path in ("/metrics", "/status", "/openapi.json", "/v1/anything"):
            assert server.http(path)[0] == 401
        assert server.http("/health")[0] == 200 and server.http("/")[0] == 200


def test_a_websocket_sends_its_key_as_browsers_and_programs_do():
    sync = pytest.importorskip("websockets.sync.client")
    with live(NullSpec(), served_name="null", api_keys=("secret",)) as server:
        address = server.url.replace("http", "ws") + "/v1/realtime"
        with sync.connect(address, additional_headers={"Authorization": "Bearer secret"}) as socket:
            assert json.loads(socket.recv())["type"] == "session.created"
        with sync.connect(address, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
            assert socket.subprotocol == "realtime" and json.loads(socket.recv())["type"] == "session.created"
        for how in ({}, {"subprotocols": ["realtime", "openai-insecure-api-key.x"]}):
            with pytest.raises(Exception, match="401"):
                sync.connect(address, **how)


def test_a_body_that_does_not_come(monkeypatch):
    from antiphon.server import middleware

    monkeypatch.setattr(middleware, "BODY_TIMEOUT", 0.5)
    with live(NullSpec(), served_name="null") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Content-Length: 100\r\n\r\n{")
            raw.settimeout(10)
            assert b"408" in raw.recv(1000).split(b"\r\n")[0]
        slow = NullSpec(steps=100, step_seconds=0.01)
    with live(slow, served_name="null") as server:
        assert server.http("/v1/chat/completions", ASK)[0] == 200, "waiting for an answer is not waiting for a body"


def test_cors(null_server):
    with live(NullSpec(), served_name="null", cors_origins=("https://a.example",)) as server:
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        headers = server.http("/v1/chat/completions", headers=preflight, method="OPTIONS")[1]
        assert headers["access-control-allow-origin"] == "https://a.example"
        other = server.http("/health", headers={"Origin": "https://b.example"})[1]
        assert "access-control-allow-origin" not in other
    assert "access-control-allow-origin" not in null_server.http("/health", headers={"Origin": "https://a.example"})[1]


def test_a_large_body_is_refused_with_and_without_its_length():
    with live(NullSpec(), served_name="null", max_upload_bytes=10_000) as server:
        big = json.dumps(ASK | {"user": "x" * 20_000}).encode()
        status, _, body = server.http("/v1/chat/completions", big)
        assert status == 413 and body["error"]["code"] == "request_too_large"
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + b"4e20\r\n" + b" " * 20_000 + b"\r\n")
            assert b"413" in raw.recv(1000).split(b"\r\n")[0]
        assert server.http("/v1/chat/completions", ASK)[0] == 200


def test_past_the_limit_429_and_the_accepted_are_served():
    with live(NullSpec(steps=100, step_seconds=0.01), served_name="null", max_in_flight=4) as server:
        with ThreadPoolExecutor(12) as pool:
            results = list(pool.map(lambda _: server.http("/v1/chat/completions", ASK), range(12)))
        statuses = [status for status, _, _ in results]
        assert statuses.count(200) >= 4 and set(statuses) == {200, 429}
        refused = next(headers for status, headers, _ in results if status == 429)
        assert int(refused["retry-after"]) >= 1
        server.idle()


def test_an_answer_may_not_take_forever():
    with live(SLOW, served_name="null", request_timeout=0.5) as server:
        status, _, body = server.http("/v1/chat/completions", ASK)
        assert status == 504 and body["error"]["code"] == "timeout"
        events = server.http("/v1/chat/completions", ASK | {"stream": True})[2]
        assert '"code":"timeout"' in events and events.rstrip().endswith("[DONE]")
        server.idle()


def test_clients_that_hang_up_leave_nothing_behind():
    with live(SLOW, served_name="null") as server:
        for stream in (True, False):
            body = json.dumps(ASK | {"stream": stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", server.port)) as raw:
                    raw.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
                    time.sleep(0.1)
        server.idle()


def test_a_killed_engine_is_an_error_within_a_second_and_service_returns():
    spec = dataclasses.replace(SLOW, load_seconds=2.0)
    with live(spec, served_name="null", engine="process") as server:
        pid = server.service.engine.backend.pid

        def ask(stream):
            result = server.http("/v1/chat/completions", ASK | {"stream": stream})
            return (*result, time.monotonic())

        with ThreadPoolExecutor(8) as pool:
            pending = [pool.submit(ask, index % 2 == 0) for index in range(8)]
            end = time.monotonic() + 20
            while server.service.engine.statistics.running < 8 and time.monotonic() < end:
                time.sleep(0.02)
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            for index, one in enumerate(pending):
                status, headers, body, when = one.result()
                assert when - killed < 1.0
                if index % 2 == 0:
                    assert "engine_unavailable" in body
                else:
                    assert status == 503 and headers["retry-after"] and body["error"]["code"] == "engine_unavailable"
        assert server.http("/ready")[0] == 503 and server.http("/health")[0] == 200
        while server.http("/ready")[0] != 200:
            assert time.monotonic() - killed < 60
            time.sleep(0.1)
        assert 2.0 <= server.service.engine.load_seconds < 10.0
        assert server.http("/v1/chat/completions", ASK | {"max_tokens": 3})[0] == 200


def test_draining_lets_answers_end():
    spec = NullSpec(steps=60, step_seconds=0.01)
    with live(spec, served_name="null", drain_timeout=20.0) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.http, "/v1/chat/completions", ASK)
        time.sleep(0.3)
        server.server.should_exit = True
        assert answer.result()[0] == 200


# -- addresses of recordings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("ftp://good.example/x", "invalid_url"),
        ("file:///etc/passwd", "invalid_url"),
        ("http://user:secret@good.example/x", "invalid_url"),
        ("http://bad.example/x", "url_not_allowed"),
        ("http://good.example.bad.example/x", "url_not_allowed"),
        ("http://good.example:x/", "invalid_url"),
        ("http://[", "invalid_url"),
        ("no address", "invalid_url"),
    ],
)
def test_addresses_off_the_list(address, code):
    with pytest.raises(ApiError) as caught:
        audio_url.fetch(address, ("good.example",), 1000, "url")
    assert caught.value.code == code and caught.value.status == 400


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "::1", "fe80::1", "fd00::1",
     "::ffff:127.0.0.1", "224.0.0.1"],
)
def test_names_at_private_addresses(monkeypatch, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))
    found = [public, (family, socket.SOCK_STREAM, 6, "", (address, 80))]
    monkeypatch.setattr(audio_url.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ApiError, match="not at a public address"):
        audio_url.fetch("http://good.example/x", ("good.example",), 1000, "url")


class _Files(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict] = {}

    def do_GET(self):
        status, location, body = self.files.get(self.path, (404, None, b""))
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def files(questions):
    _Files.files = {
        "/good.wav": (200, None, questions["p002"]["bytes"]),
        "/moved": (302, "/good.wav", b""),
        "/away": (302, "http://127.0.0.2:1/x", b""),
        "/round": (302, "/round", b""),
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_fetching(files, questions):
    def fetch(path, limit=1_000_000):
        return audio_url.fetch(files + path, ("127.0.0.1",), limit, "url", allow_private=True)

    assert fetch("/good.wav") == fetch("/moved") == questions["p002"]["bytes"]
    for path, limit, words in [
        ("/good.wav", 1000, "more than 1000"),
        ("/none", 10, "404"),
        ("/away", 10, "not on this server's list"),
        ("/round", 10, "redirects"),
    ]:
        with pytest.raises(ApiError, match=words):
            fetch(path, limit)
    with pytest.raises(ApiError, match="not at a public address"):
        audio_url.fetch(files + "/moved", ("127.0.0.1",), 1000, "url")


def test_an_address_in_a_chat(files):
    part = {"type": "audio_url", "audio_url": {"url": files + "/moved"}}
    ask = ASK | {"messages": [{"role": "user", "content": [part]}]}
    with live(NullSpec(), served_name="null", audio_url_hosts=("127.0.0.1",), audio_url_private=True) as server:
        assert server.http("/v1/chat/completions", ask)[0] == 200
    with live(NullSpec(), served_name="null", audio_url_hosts=("127.0.0.1",)) as server:
        assert server.http("/v1/chat/completions", ask)[2]["error"]["code"] == "url_not_allowed"


def test_logs_have_ids_and_no_content(null_server, caplog):
    caplog.set_level("INFO", logger="antiphon.access")
    data = base64.b64encode(b"secret" * 10).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    _, headers, _ = null_server.http("/v1/chat/completions", ASK | {"messages": [{"role": "user", "content": [part]}]})
    lines = [record.getMessage() for record in caplog.records]
    assert any(headers["x-request-id"] in line for line in lines)
    assert not any(data[:20] in line for line in lines)
