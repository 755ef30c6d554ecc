"""``antiphon transcribe`` on a model that does not compute, and the command's frame."""

from __future__ import annotations

import io
import json

import pytest

from antiphon import cli
from antiphon.progress import Progress, StatusLine


def test_one_recording_prints_its_text(run, fake, recording):
    result = run("transcribe", recording, "--prompt", "What is said?")
    assert (result.code, result.out, result.err) == (0, "one two\n", "")
    chats, kwargs = fake.requests[0]
    assert chats[0]["content"] == "What is said?" and kwargs["output_type"] == "text"
    assert fake.loads[0][1]["load_detokenizer"] is False


def test_several_recordings_are_named_and_a_bad_one_does_not_stop_the_rest(run, fake, recording, tmp_path):
    missing = tmp_path / "missing.wav"
    result = run("transcribe", recording, missing, recording)
    assert result.code == 2
    assert result.out.splitlines() == [f"{recording}: one two"] * 2
    assert result.err.startswith("antiphon: error: ") and "missing.wav" in result.err and len(fake.requests) == 2


def test_json_has_one_object_a_line(run, fake, recording):
    lines = run("transcribe", "--json", recording, recording).out.splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 2 and first["text"] == "one two" and first["seconds"] == 0.5
    assert first["rtf"] == pytest.approx(first["elapsed"] / 0.5)


@pytest.mark.parametrize(
    "argv", [[], ["sing"], ["transcribe"], ["chat", "--seed", "x"], ["eval"], ["trace", "--out", "t"]]
)
def test_wrong_calls_exit_with_2(run, argv):
    result = run(*argv)
    assert result.code == 2 and "error:" in result.err


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help(run, command):
    result = run(*filter(None, [command]), "--help")
    assert result.code == 0 and result.out.startswith("usage: antiphon")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_painted_on_a_terminal_and_removed():
    terminal = Terminal()
    progress = Progress(2, "working", StatusLine(terminal))
    progress.step("a")
    assert "working 1/2" in terminal.getvalue()
    progress.step("b")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_progress_elsewhere_is_silent():
    pipe = io.StringIO()
    status = StatusLine(pipe)
    status.show("loading", force=True)
    status.clear()
    assert pipe.getvalue() == ""


def test_status_below_returns_to_the_text():
    terminal = Terminal()
    StatusLine(terminal, below=True).show("1.0 s")
    assert terminal.getvalue() == "\x1bD\x1b[1A\x1b7\x1b[1B\r\x1b[K1.0 s\x1b8"
