"""The numbers of an evaluation, for people and as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .metrics import char_errors, total, word_errors
from .run import ItemResult


@dataclass(frozen=True)
class Rates:
    """Word error rates under one normaliser: transcription rows, all recordings, and answers transcribed back."""

    wer: float | None
    wer_all: float | None
    round_trip_wer: float | None


@dataclass(frozen=True)
class Report:
    """Summary of a run; a rate is None where the manifest or the options gave nothing to count.

    ``cer`` is over transcription rows. ``rtf`` is computing time per second of recording over everything that was run except
    loading; ``transcribe_rtf`` is the same for transcription alone, and ``speech_rtf`` is the time of spoken answers per
    second of speech. ``plain`` holds the rates without Whisper's normaliser.
    """

    usual: Rates
    plain: Rates
    cer: float | None
    answer_accuracy: float | None
    round_trip_exact: float | None
    rtf: float
    transcribe_rtf: float | None
    speech_rtf: float | None
    items: Sequence[ItemResult]

    def as_json(self) -> dict[str, Any]:
        """One flat object; ``items`` is a list with one object per row."""
        return asdict(self.usual) | {
            "cer": self.cer,
            "answer_accuracy": self.answer_accuracy,
            "round_trip_exact": self.round_trip_exact,
            "rtf": self.rtf,
            "transcribe_rtf": self.transcribe_rtf,
            "speech_rtf": self.speech_rtf,
            "plain": asdict(self.plain),
            "items": [item_json(item) for item in self.items],
        }

    def table(self) -> str:
        """The summary as lines of text."""
        lines = [
            ("word error rate, transcription rows", self.usual.wer, self.plain.wer),
            ("word error rate, all recordings", self.usual.wer_all, self.plain.wer_all),
            ("character error rate, transcription rows", self.cer, None),
            ("answers exactly right", self.answer_accuracy, None),
            ("word error rate, answers heard back", self.usual.round_trip_wer, self.plain.round_trip_wer),
            ("answers heard back exactly", self.round_trip_exact, None),
        ]
        rows = [f"{'':42s}{'normalised':>12s}{'plain':>10s}"]
        rows += [
            f"{name:42s}{_percent(usual):>12s}{_percent(plain):>10s}"
            for name, usual, plain in lines
            if usual is not None
        ]
        speeds = (("all", self.rtf), ("transcription", self.transcribe_rtf), ("speech", self.speech_rtf))
        rows.append("real-time factor: " + ", ".join(f"{name} {rtf:.3f}" for name, rtf in speeds if rtf is not None))
        return "\n".join(rows)


def summarise(items: Sequence[ItemResult]) -> Report:
    """All rates of a run."""
    answers = [item for item in items if item.answer is not None]
    heard = [item for item in answers if item.heard is not None]
    transcribed = [item for item in items if item.transcript is not None]
    work = sum(item.transcribe_seconds + item.answer_seconds for item in items)
    return Report(
        usual=_rates(items, plain=False),
        plain=_rates(items, plain=True),
        cer=total(char_errors(i.row.reference, i.transcript) for i in transcribed if i.row.task == "asr").rate,
        answer_accuracy=_share(exactly_right(item) for item in answers),
        round_trip_exact=_share(word_errors(i.answer, i.heard, plain=True).errors == 0 for i in heard),
        rtf=work / (sum(item.audio_seconds for item in items) or 1.0),
        transcribe_rtf=_ratio(transcribed, "transcribe_seconds", "audio_seconds"),
        speech_rtf=_ratio([item for item in answers if item.speech_seconds], "answer_seconds", "speech_seconds"),
        items=items,
    )


def exactly_right(item: ItemResult) -> bool:
    """Whether a chat row's answer is the expected text, but for case, punctuation and spacing."""
    return word_errors(item.row.answer or "", item.answer or "", plain=True).errors == 0


def item_json(item: ItemResult) -> dict[str, Any]:
    """One row's results with its own error rates."""
    values: dict[str, Any] = {"id": item.row.id, "task": item.row.task, "seconds": round(item.audio_seconds, 4)}
    if item.transcript is not None:
        values |= {
            "reference": item.row.reference,
            "transcript": item.transcript,
            "wer": word_errors(item.row.reference, item.transcript).rate,
            "transcribe_s": round(item.transcribe_seconds, 4),
        }
    if item.answer is not None:
        values |= {
            "expected": item.row.answer,
            "answer": item.answer,
            "right": exactly_right(item),
            "speech_seconds": round(item.speech_seconds, 4),
            "answer_s": round(item.answer_seconds, 4),
        }
    if item.heard is not None:
        values |= {"heard": item.heard, "round_trip_wer": word_errors(item.answer, item.heard).rate}
    return values


def _rates(items: Sequence[ItemResult], *, plain: bool) -> Rates:
    def rate(pairs) -> float | None:
        return total(word_errors(reference, hypothesis, plain=plain) for reference, hypothesis in pairs).rate

    said = [item for item in items if item.transcript is not None]
    return Rates(
        wer=rate((item.row.reference, item.transcript) for item in said if item.row.task == "asr"),
        wer_all=rate((item.row.reference, item.transcript) for item in said),
        round_trip_wer=rate((item.answer, item.heard) for item in items if item.heard is not None),
    )


def _share(truths) -> float | None:
    truths = list(truths)
    return sum(truths) / len(truths) if truths else None


def _ratio(items: Sequence[ItemResult], time: str, length: str) -> float | None:
    seconds = sum(getattr(item, length) for item in items)
    return sum(getattr(item, time) for item in items) / seconds if seconds else None


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"
