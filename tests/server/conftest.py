"""Servers that tests share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from live import live

from antiphon.engine_config import EngineConfig
from antiphon.engine_spec import ModelSpec
from antiphon.null_engine import NullSpec

QUESTIONS = Path(__file__).resolve().parents[2] / "examples" / "questions"


@pytest.fixture(scope="session")
def demo_server(demo):
    """The demo model, as ``demo``."""
    spec = ModelSpec(
        str(demo), device="cpu", dtype="float32", config=EngineConfig(max_sequences=8, keep_text_branch=True)
    )
    with live(spec, served_name="demo") as server:
        yield server


@pytest.fixture(scope="session")
def null_server():
    """An engine without a model, as ``null``."""
    with live(NullSpec(), served_name="null") as server:
        yield server


@pytest.fixture(scope="session")
def client(demo_server):
    """The official client of the demo server."""
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=demo_server.api, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def questions():
    """The spoken questions: manifest rows, with ``bytes`` of the wav."""
    rows = [json.loads(line) for line in (QUESTIONS / "manifest.jsonl").read_text().splitlines()]
    return {row["id"]: row | {"bytes": (QUESTIONS / row["wav"]).read_bytes()} for row in rows}
