"""A synthetic checkpoint of the smallest preset, written once, and writable copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from antiphon.checkpoint.presets import nano
from antiphon.checkpoint.synthetic import write_checkpoint


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory) -> Path:
    """The smallest synthetic checkpoint; not to be written to."""
    folder = tmp_path_factory.mktemp("checkpoint") / "nano"
    write_checkpoint(nano(), folder, seed=7)
    return folder


@pytest.fixture
def damaged(nano_folder, tmp_path) -> Path:
    """A copy of the smallest checkpoint, to be damaged."""
    return Path(shutil.copytree(nano_folder, tmp_path / "nano"))
