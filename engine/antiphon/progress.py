"""One line of progress on a terminal, silent anywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

MIN_SECONDS = 0.08
"""Between two repaints; a change sooner than that is not shown."""


class StatusLine:
    """A line on stderr that is overwritten in place.

    With ``below=True`` it lies under the cursor's line, so that text which is being printed there stays whole.
    Nothing is written when the stream is no terminal, or when ``enabled`` is false.
    """

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True, below: bool = False):
        self._stream = stream or sys.stderr
        self._enabled = enabled and self._stream.isatty()
        self._below = below
        self._visible = False
        self._last = float("-inf")

    def show(self, text: str, *, force: bool = False) -> None:
        """Replace the line by ``text``, cut to the terminal's width."""
        now = time.monotonic()
        if not self._enabled or (not force and now - self._last < MIN_SECONDS):
            return
        self._last = now
        self._paint(text[: shutil.get_terminal_size().columns - 1])
        self._visible = True

    def clear(self) -> None:
        """Remove the line; call before anything else is printed in its place."""
        if self._visible:
            self._paint("")
            self._visible = False
        self._last = float("-inf")

    def _paint(self, text: str) -> None:
        if self._below:  # make room for a line, save the cursor, write below, come back
            self._stream.write(f"\x1bD\x1b[1A\x1b7\x1b[1B\r\x1b[K{text}\x1b8")
        else:
            self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()


class Progress:
    """``done/total``, elapsed and remaining time of a loop, on a :class:`StatusLine`."""

    def __init__(self, total: int, what: str, status: StatusLine):
        self.total, self.what, self._status = total, what, status
        self.done = 0
        self._start = time.monotonic()

    def step(self, note: str = "") -> None:
        """One more item is done."""
        self.done += 1
        elapsed = time.monotonic() - self._start
        left = elapsed / self.done * (self.total - self.done)
        self._status.show(f"{self.what} {self.done}/{self.total}  {elapsed:.0f} s, {left:.0f} s left  {note}")
        if self.done == self.total:
            self._status.clear()
