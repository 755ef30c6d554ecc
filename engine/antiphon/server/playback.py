"""A listener's clock: does every piece of sound arrive before it must play?"""

from __future__ import annotations


class PlaybackClock:
    """Counts pieces and those that came too late. A listener starts with the first piece and waits where one is late."""

    def __init__(self) -> None:
        self.num_chunks = self.num_late = 0
        self.seconds = 0.0
        self.first: float | None = None
        self.gaps: list[float] = []
        self._last = self._plays_until = 0.0

    def add(self, now: float, seconds: float) -> bool:
        """A piece of ``seconds`` arrived; False if the listener had run dry."""
        late = False
        if self.first is None:
            self.first = self._plays_until = now
        else:
            self.gaps.append(now - self._last)
            late = now > self._plays_until
        self._plays_until = max(now, self._plays_until) + seconds
        self._last = now
        self.num_chunks += 1
        self.num_late += late
        self.seconds += seconds
        return not late

    def heard(self, now: float) -> float:
        """Seconds of sound that have been played, with every wait counted as silence at the end."""
        return max(0.0, self.seconds - max(0.0, self._plays_until - now))
