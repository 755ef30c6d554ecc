"""What a session is set to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...request import SamplingParams
from ..service import sampling_of
from .schema import AudioInput, ResponseParam, SessionChange, Transcription, TurnDetection
from .vad import VadOptions

SAMPLING = tuple(
    f"{stream}_{name}"
    for stream in ("audio", "text")
    for name in ("temperature", "top_k", "repetition_penalty", "repetition_window_size")
)
SHARED = ("instructions", "output_modalities", "max_output_tokens", "temperature", "seed", *SAMPLING)


@dataclass
class Settings:
    """Mutable; ``change`` applies a client's update."""

    model: str
    output_modalities: list[str] = field(default_factory=lambda: ["audio"])
    instructions: str = ""
    max_output_tokens: int | str = "inf"
    input_format: str = "audio/pcm"
    output_format: str = "audio/pcm"
    voice: str = "default"
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = field(default_factory=lambda: TurnDetection(type="server_vad"))
    temperature: float | None = None
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SAMPLING))

    def change(self, update: SessionChange | ResponseParam) -> None:
        """Take over every field that the client sent."""
        for name in SHARED:
            if name in update.model_fields_set:
                self._set(name, getattr(update, name))
        if update.audio is not None and update.audio.output is not None:
            if update.audio.output.format is not None:
                self.output_format = update.audio.output.format.type
            self.voice = update.audio.output.voice or self.voice
        if update.audio is not None and update.audio.input is not None:
            self._change_input(update.audio.input)

    def _set(self, name: str, value: Any) -> None:
        defaults = {"instructions": "", "output_modalities": ["audio"], "max_output_tokens": "inf"}
        if name in SAMPLING:
            self.sampling[name] = value
        else:
            setattr(self, name, defaults.get(name) if value is None else value)

    def _change_input(self, update: AudioInput) -> None:
        if update.format is not None:
            self.input_format = update.format.type
        if "turn_detection" in update.model_fields_set:
            self.turn_detection = update.turn_detection
        if "transcription" in update.model_fields_set:
            self.transcription = update.transcription

    @property
    def speaks(self) -> bool:
        return "audio" in self.output_modalities

    @property
    def vad(self) -> VadOptions | None:
        """How turns are found; None: the client commits."""
        one = self.turn_detection
        return None if one is None else VadOptions(one.threshold, one.prefix_padding_ms, one.silence_duration_ms)

    def sampling_params(self) -> SamplingParams:
        """For the engine."""
        limit = None if self.max_output_tokens == "inf" else self.max_output_tokens
        options = type("Options", (), self.sampling)
        return sampling_of(options, seed=self.seed, max_new_tokens=limit, temperature=self.temperature)

    def public(self, session_id: str, expires_at: int) -> dict[str, Any]:
        """OpenAI's session object."""
        detection = self.turn_detection
        return {
            "id": session_id,
            "object": "realtime.session",
            "type": "realtime",
            "model": self.model,
            "output_modalities": self.output_modalities,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "tracing": None,
            "prompt": None,
            "include": None,
            "expires_at": expires_at,
            "audio": {
                "input": {
                    "format": public_format(self.input_format),
                    "transcription": self.transcription and self.transcription.model_dump(exclude_none=True),
                    "noise_reduction": None,
                    "turn_detection": detection and detection.model_dump(),
                },
                "output": {"format": public_format(self.output_format), "voice": self.voice, "speed": 1.0},
            },
        }


def public_format(kind: str) -> dict[str, Any]:
    """OpenAI's format object."""
    return {"type": kind, "rate": 24_000} if kind == "audio/pcm" else {"type": kind}
