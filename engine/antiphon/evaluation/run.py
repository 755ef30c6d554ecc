"""Every row of a manifest through the model, one at a time, in the manifest's order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..audio import load_audio
from ..config import SAMPLE_RATE_IN, SAMPLE_RATE_OUT
from .manifest import Row

if TYPE_CHECKING:
    from ..api import KimiAudio


@dataclass(frozen=True)
class ItemResult:
    """One row's outcome. Times in seconds; what was not asked of the row is None.

    ``transcript`` is the recording transcribed (also of a chat row that states what is said), ``answer`` the text of a chat
    row's answer, ``heard`` its speech transcribed back by the same model.
    """

    row: Row
    audio_seconds: float
    transcript: str | None = None
    transcribe_seconds: float = 0.0
    answer: str | None = None
    answer_seconds: float = 0.0
    speech_seconds: float = 0.0
    heard: str | None = None


def evaluate(
    model: KimiAudio,
    rows: Iterable[Row],
    *,
    speech: bool = False,
    seed: int | None = 0,
    on_item: Callable[[ItemResult], None] = lambda item: None,
) -> list[ItemResult]:
    """Greedy transcription and answers of every row; ``on_item`` sees each result as it is made.

    With ``speech`` every spoken answer is transcribed back. ``seed`` fixes the detokenizer's noise.
    """  # fmt: skip
    results = []
    for row in rows:
        results.append(_judge(model, row, speech, seed))
        on_item(results[-1])
    return results


def _judge(model: KimiAudio, row: Row, speech: bool, seed: int | None) -> ItemResult:
    samples = load_audio(row.wav)
    recording = (samples, SAMPLE_RATE_IN)
    fields: dict = {"audio_seconds": len(samples) / SAMPLE_RATE_IN}
    if row.reference is not None:
        start = time.perf_counter()
        fields["transcript"] = _transcribe(model, row.instruction, recording)
        fields["transcribe_seconds"] = time.perf_counter() - start
    if row.task == "chat":
        start = time.perf_counter()
        question = {"role": "user", "message_type": "audio", "content": recording}
        output_type = "both" if speech else row.output_type
        wav, fields["answer"] = model.generate([question], output_type=output_type, seed=seed)
        fields["answer_seconds"] = time.perf_counter() - start
        if wav is not None:
            spoken = np.asarray(wav, np.float32).reshape(-1)
            fields["speech_seconds"] = len(spoken) / SAMPLE_RATE_OUT
            fields["heard"] = _hear(model, row.instruction, spoken) if speech else None
    return ItemResult(row=row, **fields)


def _hear(model: KimiAudio, instruction: str, spoken: np.ndarray) -> str:
    return _transcribe(model, instruction, (spoken, SAMPLE_RATE_OUT)) if len(spoken) else ""


def _transcribe(model: KimiAudio, instruction: str, recording: tuple[np.ndarray, int]) -> str:
    messages = [
        {"role": "user", "message_type": "text", "content": instruction},
        {"role": "user", "message_type": "audio", "content": recording},
    ]
    return model.generate(messages, output_type="text")[1]
