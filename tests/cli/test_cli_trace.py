"""``antiphon trace``: reading noise, naming arrays, writing exactly the file that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from antiphon.commands.trace import read_noise, trace_arrays, write_npz
from antiphon.errors import InputError


@dataclass
class SmallTrace:
    audio_ids: np.ndarray
    speech_codes: list[np.ndarray]
    text: str
    wav: np.ndarray | None = None


def test_lists_are_numbered_and_nothing_is_left_out_but_none():
    arrays = trace_arrays(SmallTrace(np.arange(3), [np.arange(2), np.arange(4)], "für 你"))
    assert list(arrays) == ["audio_ids", "speech_codes_0", "speech_codes_1", "text"]
    assert str(arrays["text"]) == "für 你" and arrays["speech_codes_1"].shape == (4,)


def test_written_under_exactly_this_name(tmp_path):
    path = tmp_path / "trace.bin"
    write_npz(path, {"text": np.asarray("é"), "mel": np.zeros((2, 80), np.float32)})
    assert [file.name for file in tmp_path.iterdir()] == ["trace.bin"]
    with np.load(path) as file:
        assert str(file["text"]) == "é" and file["mel"].shape == (2, 80)


def test_noise_comes_in_order_of_number(tmp_path):
    arrays = {f"noise_{i}": np.full((4, 80), i, np.float64) for i in range(12)}
    np.savez(tmp_path / "noise.npz", **dict(reversed(arrays.items())))
    noise = read_noise(tmp_path / "noise.npz")
    assert [int(chunk[0, 0]) for chunk in noise] == list(range(12)) and noise[0].dtype == np.float32


@pytest.mark.parametrize(
    "arrays",
    [
        {"noise_1": np.zeros((4, 80))},
        {"pool": np.zeros((4, 80))},
        {},
        {"noise_0": np.zeros(80)},
        {"noise_0": np.array("x")},
    ],
    ids=["gap", "other name", "nothing", "one dimension", "text"],
)
def test_noise_with_wrong_contents(tmp_path, arrays):
    np.savez(tmp_path / "noise.npz", **arrays)
    with pytest.raises(InputError, match="noise.npz"):
        read_noise(tmp_path / "noise.npz")


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x93NUMPY\x01\x00garbage", b"PK\x03\x04broken"])
def test_noise_that_is_no_npz(tmp_path, content):
    path = tmp_path / "noise.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="noise.npz"):
        read_noise(path)


def test_noise_as_a_single_array_is_refused(tmp_path):
    path = tmp_path / "noise.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros((4, 80), np.float32))
    with pytest.raises(InputError, match="noise.npz"):
        read_noise(path)
