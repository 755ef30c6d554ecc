"""Fixtures that every test folder uses: where the shared checkpoints and golden files lie."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the repository; tests that need it are skipped without it."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def tiny(shared: Path) -> Path:
    """The toy checkpoint with random weights, in the official layout."""
    return shared / "fixtures" / "tiny"


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder of golden arrays recorded from the reference on :func:`tiny`."""
    return shared / "fixtures" / "golden"


@pytest.fixture(scope="session")
def demo(shared: Path) -> Path:
    """The small trained checkpoint that hears and speaks 63 English words."""
    return shared / "fixtures" / "demo"
