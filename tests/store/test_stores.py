"""One set of tests for every store; Redis is a real server that the test starts."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from antiphon.errors import ConfigError
from antiphon.store import MemoryStore, SqliteStore, StoreError, open_store


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """A Redis server of our own on a socket in a temporary folder."""
    pytest.importorskip("redis", reason="the redis package (extra 'redis') is not installed")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", "0", "--unixsocket", "r.sock", "--save", "", "--dir", str(folder)]
    with subprocess.Popen([program, *options], cwd=folder, stdout=subprocess.DEVNULL) as server:
        url = f"unix://{folder}/r.sock"
        _wait_for(url)
        yield url
        server.terminate()


def _wait_for(url):
    for _ in range(200):
        try:
            return open_store(url).close()
        except StoreError:
            time.sleep(0.05)
    raise AssertionError("redis-server did not come up")


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request, tmp_path):
    if request.param == "redis":
        address = request.getfixturevalue("redis_url")
    else:
        address = {"memory": "memory", "sqlite": str(tmp_path / "new" / "store.db")}[request.param]
    store = open_store(address)
    yield store
    store.close()


def test_put_get_replace_delete(store):
    assert store.get("a") is None
    entry = store.put("a", b"\x00one", ttl=60)
    assert abs(entry.expires_at - time.time() - 60) < 5
    store.put("b", b"other", ttl=60)
    found = store.get("a")
    assert found.value == b"\x00one" and abs(found.expires_at - entry.expires_at) < 1
    store.put("a", b"two" * 500_000, ttl=60)
    assert store.get("a").value == b"two" * 500_000
    assert store.delete("a") and not store.delete("a")
    assert store.get("a") is None and store.get("b").value == b"other"
    assert store.delete("b")


def test_expired_entries_are_gone(store):
    store.put("short", b"x", ttl=0.05)
    store.put("long", b"y", ttl=60)
    time.sleep(0.15)
    assert store.get("short") is None and store.delete("short") is False
    store.purge()
    assert store.get("long").value == b"y"
    store.delete("long")


def test_wrong_keys_are_refused(store):
    for key in ("", "x" * 201):
        with pytest.raises(ValueError):
            store.get(key)


def test_many_threads_at_once(store):
    def work(number):
        for round_ in range(20):
            value = f"{number}.{round_}".encode() * 50
            store.put(f"key-{number}", value, ttl=60)
            assert store.get(f"key-{number}").value == value
        return store.delete(f"key-{number}")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_memory_is_bounded_least_recently_used_out_first():
    store = MemoryStore(max_bytes=100)
    for key in "abc":
        store.put(key, b"x" * 30, ttl=60)
    store.get("a")
    store.put("d", b"x" * 30, ttl=60)
    assert store.get("b") is None and store.get("a") and store.num_bytes == 90


def test_sqlite_survives_its_process_and_purges(tmp_path):
    path = tmp_path / "s.db"
    clock = [1000.0]
    store = SqliteStore(path, clock=lambda: clock[0])
    store.put("a", b"1", ttl=10)
    store.put("b", b"2", ttl=1000)
    store.close()
    clock[0] += 100
    store = SqliteStore(path, clock=lambda: clock[0])
    assert store.get("b").value == b"2" and store.purge() == 1 and store.purge() == 0
    store.close()


def test_what_cannot_be_opened_is_said(tmp_path):
    (tmp_path / "no.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match=r"no\.db"):
        open_store(str(tmp_path / "no.db"))
    pytest.importorskip("redis")
    with pytest.raises(StoreError, match="Redis"):
        open_store(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises((ConfigError, StoreError)):
        open_store("redis://localhost:notaport/0")
