"""A server of our own for a load test: ``antiphon serve`` on a free port, ended with the block."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def serving(model: str, options: Sequence[str] = (), timeout: float = 120.0) -> Iterator[str]:
    """Address of a ready server over ``model``; conversations go to a file, so that memory shows what requests leave.

    Args:
        options: more arguments of ``antiphon serve``.

    Raises:
        RuntimeError: it ended, or was not ready in ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "antiphon", "serve", "--model", model, "--port", str(port)]
        command += ["--store", str(Path(folder) / "conversations.db"), "--set", "log_level=warning", *options]
        process = subprocess.Popen(command)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(process, url, timeout)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait_ready(process: subprocess.Popen, url: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url + "/ready", timeout=5):
            return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server is not ready; exit code {process.poll()}")
        time.sleep(0.1)
