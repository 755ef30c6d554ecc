"""``KimiAudio``: the official call, on this engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .deltas import AudioDelta, Delta, FinishDelta, TextDelta
from .engine import Engine
from .engine_config import EngineConfig
from .errors import AntiphonError
from .live_request import PreparedRequest, prepare
from .request import GenerationRequest, sampling_params
from .runtime import Runtime, load_runtime
from .speech import SpeechOptions
from .trace import Trace, trace

__all__ = ["AudioDelta", "Delta", "FinishDelta", "KimiAudio", "TextDelta"]


class KimiAudio:
    """Kimi-Audio with the official interface: one call, one answer, in text and in speech.

    Args:
        model_path: folder in the official layout, or a hub name.
        load_detokenizer: False leaves out the voice; only ``output_type="text"`` works then.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16``.
        speech_tokenizer: folder or hub name of the GLM-4-Voice tokenizer, if it is not inside the model folder.
        draft: on a CPU, ``int8``, ``int4`` or a folder made by ``antiphon quantize``: the same tokens at less cost, for
            more memory (docs/quantisation.md).
        compact: on a CPU, hold matrices of a bfloat16 checkpoint in 12 bits a weight, without loss; False: as they are.
            Default: where it decodes faster.

    Raises:
        CheckpointError, ConfigError: the model cannot be loaded as asked.
    """

    def __init__(
        self,
        model_path: str | Path,
        load_detokenizer: bool = True,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        speech_tokenizer: str | Path | None = None,
        draft: str | Path | None = None,
        compact: bool | None = None,
    ):
        self.runtime: Runtime = load_runtime(
            model_path,
            load_detokenizer=load_detokenizer,
            device=device,
            dtype=dtype,
            speech_tokenizer=speech_tokenizer,
            draft=draft,
            compact=compact,
        )
        self.engine = Engine(self.runtime, EngineConfig(max_sequences=4, max_voices=2))
        self._lock = threading.Lock()
        self._deltas: dict[str, deque[Delta | AntiphonError]] = {}

    def generate(self, chats: Sequence[Mapping[str, Any]], output_type: str = "text", *args, **options):
        """Answer a conversation; arguments as for :meth:`generate_stream`.

        Returns:
            ``(wav, text)``: wav float32 [1, N] at 24 kHz for output type ``both`` (N = 0 if nothing was said), else None.
        """
        text, pieces = [], [np.zeros(0, np.float32)]
        for delta in self.generate_stream(chats, output_type, *args, **options):
            if isinstance(delta, TextDelta):
                text.append(delta.text)
            elif isinstance(delta, AudioDelta):
                pieces.append(delta.pcm)
        wav = torch.from_numpy(np.concatenate(pieces))[None] if output_type == "both" else None
        return wav, "".join(text)

    def generate_stream(
        self,
        chats: Sequence[Mapping[str, Any]],
        output_type: str = "text",
        audio_temperature: float = 0.0,
        audio_top_k: int = 5,
        text_temperature: float = 0.0,
        text_top_k: int = 5,
        audio_repetition_penalty: float = 1.0,
        audio_repetition_window_size: int = 64,
        text_repetition_penalty: float = 1.0,
        text_repetition_window_size: int = 16,
        max_new_tokens: int = -1,
        *,
        seed: int | None = None,
        speech: SpeechOptions | None = None,
        noise: Iterable[np.ndarray] | None = None,
    ) -> Iterator[Delta]:
        """Answer a conversation piece by piece. Arguments are checked at the call, before the first piece is asked for.

        Args:
            chats: official messages ``{"role", "message_type", "content"}``; a recording may be a path, bytes, an open
                file, or ``(array, rate)``.
            output_type: ``text`` or ``both``.
            audio_temperature, ..., text_repetition_window_size: the official sampling arguments and defaults.
            max_new_tokens: limit of steps; -1: the official limits.
            seed: same seed, same tokens and samples; None: a fresh one.
            speech: chunking and overlap; default: the reference's.
            noise: one array [frames, 80] per chunk instead of seeded noise.

        Raises:
            InputError: messages or options are malformed (AudioError, PromptTooLongError among them).
            ConfigError: ``both`` without a detokenizer.
        """
        sampling = sampling_params(
            audio_temperature=audio_temperature,
            audio_top_k=audio_top_k,
            text_temperature=text_temperature,
            text_top_k=text_top_k,
            audio_repetition_penalty=audio_repetition_penalty,
            audio_repetition_window_size=audio_repetition_window_size,
            text_repetition_penalty=text_repetition_penalty,
            text_repetition_window_size=text_repetition_window_size,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        request = GenerationRequest(chats, output_type, sampling, speech or SpeechOptions(), noise)
        return self._run(prepare(request, self.runtime))

    def trace(
        self,
        chats: Sequence[Mapping[str, Any]],
        output_type: str = "text",
        *,
        seed: int | None = None,
        speech: SpeechOptions | None = None,
        noise: Iterable[np.ndarray] | None = None,
        **sampling: Any,
    ) -> Trace:
        """Run a conversation alone and return every intermediate array; arguments as for :meth:`generate_stream`."""
        params = sampling_params(seed=seed, **sampling)
        request = GenerationRequest(chats, output_type, params, speech or SpeechOptions(), noise)
        prepared = prepare(request, self.runtime)
        with self._lock:
            return trace(self.runtime, prepared)

    def _run(self, prepared: PreparedRequest) -> Iterator[Delta]:
        """Step the engine until this request's last delta; leaving early ends the request.

        Several generations may be under way at once, in one thread or in many: whoever needs a delta steps the engine, and
        everybody's deltas are kept for them.
        """
        deltas: deque[Delta | AntiphonError] = deque()
        with self._lock:
            request_id = self.engine.add(prepared)
            self._deltas[request_id] = deltas
        try:
            while True:
                with self._lock:
                    if not deltas:
                        self._step()
                        continue
                delta = deltas.popleft()
                if isinstance(delta, AntiphonError):
                    raise delta
                yield delta
                if isinstance(delta, FinishDelta):
                    return
        finally:
            with self._lock:
                del self._deltas[request_id]
                self.engine.abort(request_id)

    def _step(self) -> None:
        """One step of the engine; deltas go to whom they belong, those of abandoned requests nowhere."""
        for request_id, delta in self.engine.step():
            if request_id in self._deltas:
                self._deltas[request_id].append(delta)
