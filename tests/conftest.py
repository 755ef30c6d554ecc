"""Fixtures that every test folder uses: where the shared checkpoints and golden files lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported: kernels then run on CPU tensors


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the repository; tests that need it are skipped without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The toy checkpoint with random weights, in the official layout."""
    return _shared_or("fixtures/tiny", "tests/data/tiny")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden arrays recorded from the reference on :func:`tiny`; the core subset without ``shared``."""
    return _shared_or("fixtures/golden", "tests/data/golden")


@pytest.fixture(scope="session")
def demo() -> Path:
    """The small trained checkpoint that hears and speaks 63 English words."""
    return _shared_or("fixtures/demo", "examples/demo_model")


def _shared_or(name: str, own: str) -> Path:
    """A folder of ``shared``, or the project's own copy of it (or of its core) where that is not here."""
    root = Path(__file__).resolve().parents[1]
    path = root.parent / "shared" / name
    return path if path.is_dir() else root / own


@pytest.fixture(scope="session", params=["core", "full"])
def fixtures(request) -> Path:
    """A folder with ``golden/``, ``tiny/`` and ``wav/``: the copied core subset, then all of it where it is present."""
    if request.param == "core":
        return Path(__file__).resolve().parent / "data"
    return request.getfixturevalue("shared") / "fixtures"


@pytest.fixture(scope="session")
def within_budget():
    """``within_budget(name, error, allowed)`` asserts and prints the share of the error budget that was used."""

    def check(name: str, error: float, allowed: float) -> None:
        print(f"{name}: error {error:.2e}, {100 * error / allowed:.1f} % of the budget {allowed:.0e}")
        assert error <= allowed, f"{name}: error {error:.3e} exceeds {allowed:.3e}"

    return check


@pytest.fixture(scope="session")
def tiny_runtime(tiny: Path):
    """The toy checkpoint loaded in float32."""
    from antiphon.runtime import load_runtime

    return load_runtime(tiny, device="cpu", dtype="float32")


class Recordings:
    """Folder to which the golden conversations' recordings are relative; skips where one of them is not here."""

    def __init__(self, folder: Path):
        self.folder = folder

    def missing(self, messages: list[dict]) -> list[str]:
        """Names of recordings that are not here."""
        contents = [m["content"] for m in messages if m["message_type"] != "text"]
        names = [content if isinstance(content, str) else content[0] for content in contents]
        return [name for name in names if not (self.folder / name).is_file()]

    def has(self, messages: list[dict]) -> bool:
        """Whether every recording of a conversation is here."""
        return not self.missing(messages)

    def __call__(self, messages: list[dict]) -> None:
        """Skip the test unless every recording of a conversation is here."""
        if missing := self.missing(messages):
            pytest.skip(f"recordings not here: {', '.join(missing)}")


@pytest.fixture(scope="session")
def recordings(golden: Path) -> Recordings:
    """Where the recordings of the golden conversations lie."""
    return Recordings(golden.parent)
