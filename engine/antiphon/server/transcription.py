"""``POST /v1/audio/transcriptions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ..config import SAMPLE_RATE_IN
from ..deltas import FinishDelta, TextDelta, Usage
from ..errors import AntiphonError
from ..request import GenerationRequest, SamplingParams, StreamSampling
from ..request_stream import RequestStream
from .connection import until_disconnect
from .errors import as_api_error, bad_request, envelope
from .event_stream import DONE, EventStream, event
from .media import AudioBudget
from .service import Service
from .subtitles import Segment, srt, vtt
from .windows import Window, cut

router = APIRouter()

INSTRUCTION = "Please transcribe the audio."
AHEAD = 4
"""Windows of one recording that are in the engine at once."""
Format = Literal["json", "text", "verbose_json", "srt", "vtt"]


@router.post("/v1/audio/transcriptions", response_model=None)
async def transcriptions(
    request: Request,
    file: Annotated[UploadFile, File()],
    model: Annotated[str, Form()],
    prompt: Annotated[str, Form(max_length=10_000)] = "",
    language: Annotated[str, Form(max_length=20)] = "",
    response_format: Annotated[Format, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    stream: Annotated[bool, Form()] = False,
    granularities: Annotated[list[Literal["segment", "word"]], Form(alias="timestamp_granularities[]")] = (),
    include: Annotated[list[str], Form(alias="include[]")] = (),
    chunking_strategy: Annotated[str, Form()] = "auto",
) -> Response:
    """What is said in a recording. A ``prompt`` takes the place of the instruction to transcribe."""
    service: Service = request.app.state.service
    service.check_model(model)
    await _refuse_unknown(request)
    if "word" in granularities:
        raise bad_request("word times are not supported; use segment", "timestamp_granularities")
    if include:
        raise bad_request("not supported; leave it out", "include")
    if chunking_strategy != "auto":
        raise bad_request("only 'auto' is supported", "chunking_strategy")
    if stream and response_format not in ("json", "text"):
        raise bad_request("a streamed transcription comes as json or text", "response_format")
    service.check_room()
    budget = AudioBudget(service.config.max_transcription_seconds)
    samples = await service.in_thread(budget.decode, await file.read(), "", "file")
    job = Job(service, samples, prompt or INSTRUCTION, temperature)
    await job.begin()
    if stream:
        return EventStream(_events(job))
    return await until_disconnect(request, _whole(job, response_format, language))


FIELDS = {"file", "model", "prompt", "language", "response_format", "temperature", "stream", "chunking_strategy"}
FIELDS |= {"timestamp_granularities[]", "timestamp_granularities", "include[]", "include"}


async def _refuse_unknown(request: Request) -> None:
    for name in await request.form():
        if name not in FIELDS:
            raise bad_request(f"{name}: this parameter is not known", name, "unknown_parameter")


class Job:
    """One recording on its way: windows in the engine ahead of the one that is read."""

    def __init__(self, service: Service, samples: np.ndarray, instruction: str, temperature: float):
        self.service, self.samples, self.instruction = service, samples, instruction
        self.sampling = SamplingParams(StreamSampling(temperature=temperature))
        self.windows = cut(samples)
        self.usage: list[Usage] = []
        self._streams: dict[int, RequestStream] = {}

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE_IN

    async def begin(self) -> None:
        """Put the first windows into the engine; raises if it does not take them."""
        try:
            self._advance(0)
            await self._streams[0].accepted()
        except BaseException:
            self.end()
            raise

    def _advance(self, current: int) -> None:
        for index in range(current, min(current + AHEAD, len(self.windows))):
            if index not in self._streams:
                self._streams[index] = self.service.generate(self._request(self.windows[index]))

    def _request(self, window: Window) -> GenerationRequest:
        recording = (self.samples[window.start : window.end], SAMPLE_RATE_IN)
        messages = [
            {"role": "user", "message_type": "text", "content": self.instruction},
            {"role": "user", "message_type": "audio", "content": recording},
        ]
        return GenerationRequest(messages, "text", self.sampling)

    async def text(self) -> AsyncIterator[tuple[int, str]]:
        """Pieces of text with the number of their window, in order."""
        try:
            for index in range(len(self.windows)):
                self._advance(index)
                async for delta in self.service.answer(self._streams[index]):
                    if isinstance(delta, TextDelta):
                        yield index, delta.text
                    elif isinstance(delta, FinishDelta):
                        self.usage.append(delta.usage)
        finally:
            self.end()

    def end(self) -> None:
        """Take what is left out of the engine."""
        for stream in self._streams.values():
            stream.abort()


async def _whole(job: Job, kind: Format, language: str) -> Response:
    texts = [""] * len(job.windows)
    async for index, piece in job.text():
        texts[index] += piece
    segments = [
        Segment(window.start / SAMPLE_RATE_IN, window.end / SAMPLE_RATE_IN, text.strip())
        for window, text in zip(job.windows, texts)
    ]
    said = " ".join(segment.text for segment in segments if segment.text)
    if kind == "json":
        return JSONResponse({"text": said, "usage": _tokens(job.usage)})
    if kind == "verbose_json":
        return JSONResponse(_verbose(job, segments, said, language))
    body = {"text": said + "\n", "srt": srt(segments), "vtt": vtt(segments)}[kind]
    return PlainTextResponse(body)


def _verbose(job: Job, segments: list[Segment], said: str, language: str) -> dict[str, Any]:
    """OpenAI's object; what this model does not estimate is 0."""
    return {
        "task": "transcribe",
        "language": language or "unknown",
        "duration": job.seconds,
        "text": said,
        "segments": [
            {
                "id": number,
                "seek": 0,
                "start": segment.start,
                "end": segment.end,
                "text": segment.text,
                "tokens": [],
                "temperature": job.sampling.text.temperature,
                "avg_logprob": 0.0,
                "compression_ratio": 0.0,
                "no_speech_prob": 0.0,
            }
            for number, segment in enumerate(segments)
        ],
        "usage": {"type": "duration", "seconds": job.seconds},
    }


async def _events(job: Job) -> AsyncGenerator[bytes, None]:
    """Server-sent events; windows are joined by a space."""
    said, last = "", 0
    try:
        async for index, piece in job.text():
            if index != last:
                piece, last = " " + piece.lstrip(), index
            said += piece
            yield event({"type": "transcript.text.delta", "delta": piece})
        yield event({"type": "transcript.text.done", "text": said, "usage": _tokens(job.usage)})
    except AntiphonError as error:
        yield event(envelope(as_api_error(error)))
    yield DONE


def _tokens(usage: list[Usage]) -> dict[str, Any]:
    given, made = sum(one.prompt_tokens for one in usage), sum(one.text_tokens for one in usage)
    return {"type": "tokens", "input_tokens": given, "output_tokens": made, "total_tokens": given + made}
