"""Every intermediate array of one request, run alone: what anyone who compares numerics needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .live_request import PreparedRequest
from .prompt import Prompt
from .request import SamplingParams
from .runtime import Runtime
from .solo import SoloRun, Step
from .speech import StreamingDetokenizer
from .streams import TokenStreams


@dataclass(frozen=True)
class Trace:
    """One request in arrays; lists have one entry per recording, ``mel`` and ``wav`` are None without speech.

    audio_ids, text_ids int64 [P], continuous_mask uint8 [P]: the prompt. speech_codes: int64 [n] each.
    whisper_features: float32 [n, adaptor input] each, None for a recording whose features the prompt does not use.
    prefill_text_logits, prefill_audio_logits: float32 [vocab], last prompt position, before the penalty.
    text_stream, audio_stream: int64 [steps], raw ids after forcing. text_tokens, audio_tokens: int64, after the official
    filtering, without the offset. mel: float32 [frames, num_mels]; wav: float32 [samples].
    """

    audio_ids: np.ndarray
    text_ids: np.ndarray
    continuous_mask: np.ndarray
    speech_codes: list[np.ndarray]
    whisper_features: list[np.ndarray]
    prefill_text_logits: np.ndarray
    prefill_audio_logits: np.ndarray
    text_stream: np.ndarray
    audio_stream: np.ndarray
    text_tokens: np.ndarray
    audio_tokens: np.ndarray
    text: str
    mel: np.ndarray | None = None
    wav: np.ndarray | None = None


def trace(runtime: Runtime, prepared: PreparedRequest) -> Trace:
    """Run one request alone and keep its numbers; both heads also run at the prompt's end, for their logits."""
    request = prepared.request
    audios = runtime.encoder.encode(prepared.recordings, prepared.with_features)
    prompt = runtime.builder.build(prepared.messages, audios, request.output_type)
    steps = list(SoloRun(runtime.llm, prompt, request.sampling, prepared.seed).steps())
    text, tokens = TokenStreams.of(runtime.config.llm, [s.text for s in steps], [s.audio for s in steps])
    text_logits, audio_logits = prefill_logits(runtime, prompt)
    mel = wav = None
    if prompt.output_type == "both":
        mel, wav = _speak(runtime, tokens, prepared)
    return Trace(
        audio_ids=prompt.audio_ids.numpy(),
        text_ids=prompt.text_ids.numpy(),
        continuous_mask=prompt.continuous_mask.numpy(),
        speech_codes=[audio.speech_codes.numpy() for audio in prompt.all_audios],
        whisper_features=[a.features.float().cpu().numpy() for a in prompt.all_audios if a.features is not None],
        prefill_text_logits=text_logits,
        prefill_audio_logits=audio_logits,
        text_stream=_stream(steps, "text"),
        audio_stream=_stream(steps, "audio"),
        text_tokens=np.array(text, dtype=np.int64),
        audio_tokens=np.array(tokens, dtype=np.int64),
        text=runtime.tokenizer.decode(text),
        mel=mel,
        wav=wav,
    )


def prefill_logits(runtime: Runtime, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Raw logits of both heads at the last prompt position, float32 [vocab], whatever the request itself needs."""
    run = SoloRun(runtime.llm, prompt, SamplingParams(max_new_tokens=1), seed=0, both_heads=True)
    output = next(run.steps(keep_logits=True)).output
    return output.text_logits[0].float().cpu().numpy(), output.audio_logits[0].float().cpu().numpy()


def _stream(steps: Sequence[Step], name: str) -> np.ndarray:
    return np.array([getattr(step, name) for step in steps], dtype=np.int64)


def _speak(runtime: Runtime, tokens: list[int], prepared: PreparedRequest) -> tuple[np.ndarray, np.ndarray]:
    """Mel [frames, num_mels] and wav [samples] of speech tokens; empty arrays without a token."""
    request = prepared.request
    voice = StreamingDetokenizer(runtime.flow, runtime.vocoder)
    seed = prepared.seed if request.noise is None else None
    stream = voice.open(request.speech, seed=seed, noise=request.noise, record=True)
    pieces = [np.zeros(0, np.float32)]
    try:
        stream.push(tokens)
        stream.finish()
        while stream.ready:
            pieces += voice.run([(stream, *stream.pop())])
    finally:
        stream.close()
    empty = np.zeros((0, runtime.config.flow.num_mels), np.float32)
    return np.concatenate([empty, *stream.mel_chunks]), np.concatenate(pieces)
