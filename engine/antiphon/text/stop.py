"""Stop texts in a stream of text: what may be part of one is held back until that is decided."""

from __future__ import annotations


class StopTexts:
    """Passes text through until the first of ``texts`` appears; that text and everything behind it is dropped."""

    def __init__(self, texts: tuple[str, ...]):
        self.texts = texts
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """Text that certainly belongs to the answer."""
        if self.found or not self.texts:
            return "" if self.found else text
        text, self._held = self._held + text, ""
        places = [place for place in (text.find(stop) for stop in self.texts) if place >= 0]
        if places:
            self.found = True
            return text[: min(places)]
        keep = max(self._overlap(text, stop) for stop in self.texts)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that is a beginning of ``stop``."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
