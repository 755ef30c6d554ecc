"""When a listener runs out of sound: the playback clock of one audio stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PlaybackClock:
    """Playback starts with the first piece of sound and goes on in real time; times in seconds of an injected clock.

    ``end``: when everything handed out so far has been played; None before the first piece. A piece that comes later than
    ``end`` leaves a gap. ``num_late`` of ``num_pieces`` pieces did; the first piece is never late.
    """

    end: float | None = None
    num_pieces: int = 0
    num_late: int = 0
    silence: float = 0.0
    seconds: float = 0.0

    def emitted(self, now: float, seconds: float) -> bool:
        """``seconds`` of sound are handed out; returns whether they came in time."""
        late = 0.0 if self.end is None else max(0.0, now - self.end)
        self.end = seconds + (now if self.end is None or late else self.end)
        self.num_pieces += 1
        self.num_late += late > 0
        self.silence += late
        self.seconds += seconds
        return late == 0

    def buffered(self, now: float) -> float:
        """Seconds of sound that are not played yet."""
        return 0.0 if self.end is None else max(0.0, self.end - now)

    @property
    def viability(self) -> float:
        """Share of the pieces after the first that arrived before they had to play; 1 if there is none."""
        return 1.0 if self.num_pieces < 2 else 1.0 - self.num_late / (self.num_pieces - 1)
