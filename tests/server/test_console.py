"""The console: nothing from outside, and a real browser that talks through it with a recorded voice."""

from __future__ import annotations

import os
import re
import shutil
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from antiphon.audio import load_audio


def test_the_page_needs_nothing_from_outside(null_server):
    status, headers, page = null_server.http("/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", page) and "http://" not in page and "https://" not in page
    assert null_server.http("/status")[2]["state"] == "ready"


@pytest.fixture
def page(tmp_path, questions):
    """A page of a Chromium whose microphone is a recording: two seconds of silence, a question, silence."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    question = load_audio(questions["p025"]["bytes"])
    sound = np.concatenate((np.zeros(32_000), question, np.zeros(160_000)))
    with wave.open(str(tmp_path / "mic.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    flags = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}%noloop",
        "--autoplay-policy=no-user-gesture-required",
        "--no-sandbox",
    ]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=flags)
        yield browser.new_page()
        browser.close()


def test_a_browser_talks_through_it(demo_server, page, questions, tmp_path):
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(demo_server.url + "/")
    page.click("#connect")
    page.wait_for_function("document.getElementById('state').textContent.startsWith('connected')", timeout=30_000)
    page.click("#open")
    answer = questions["p025"]["answer"]
    page.wait_for_function(
        "text => [...document.querySelectorAll('#talk .assistant')].some(line => line.textContent === text)",
        arg=answer,
        timeout=90_000,
    )
    page.wait_for_function("document.getElementById('ttfa').textContent.endsWith('ms')", timeout=30_000)
    time.sleep(1)
    folder = Path(os.environ.get("ANTIPHON_TEST_OUTPUT", tmp_path))
    page.screenshot(path=str(folder / "console.png"))
    assert (folder / "console.png").stat().st_size > 10_000
    assert page.inner_text("#ttft").endswith("ms") and errors == []
    page.fill("#text", "what is two plus five")
    page.click("#type button")
    page.wait_for_function(
        "[...document.querySelectorAll('#talk .user')].some(l => l.textContent === 'what is two plus five')", timeout=30_000
    )
