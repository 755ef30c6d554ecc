"""Transcripts with times as SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """Text from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    text: str


def srt(segments: Sequence[Segment]) -> str:
    """SubRip."""
    blocks = [
        f"{number}\n{_time(one.start, ',')} --> {_time(one.end, ',')}\n{_one_block(one.text)}\n"
        for number, one in enumerate(segments, 1)
    ]
    return "\n".join(blocks)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT."""
    blocks = [f"{_time(one.start, '.')} --> {_time(one.end, '.')}\n{_one_block(one.text)}\n" for one in segments]
    return "\n".join(["WEBVTT\n", *blocks])


def _time(seconds: float, comma: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{comma}{rest % 1000:03d}"


def _one_block(text: str) -> str:
    """Empty lines would end the block early, an arrow would begin another."""
    return "\n".join(line for line in text.replace("-->", "→").splitlines() if line.strip())
