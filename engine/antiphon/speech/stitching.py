"""From chunks of mel to a gapless wave: what to vocode after each chunk, and what of the result to hand out.

A stitcher is told each chunk's mel (``window``), says which frames to vocode, gets their sound and returns the samples that
are ready (``emit``). All tensors are on the model's device; mels [frames, num_mels], sound float32.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..config import HOP_OUT
from .options import SpeechOptions
from .receptive_field import ReceptiveField


class Stitcher(Protocol):
    """State of one stream's output; ``window`` and ``emit`` alternate."""

    def window(self, mel: torch.Tensor, look_ahead: torch.Tensor, final: bool) -> torch.Tensor:
        """Frames to vocode now (possibly none), after new frames ``mel`` with provisional frames ``look_ahead`` behind."""
        ...

    def emit(self, wav: torch.Tensor) -> torch.Tensor:
        """The next samples of the stream, from the sound of the frames that :meth:`window` named."""
        ...


def open_stitcher(options: SpeechOptions, field: ReceptiveField, num_mels: int, device) -> Stitcher:
    """The stitcher for ``options.overlap``, in its initial state."""
    nothing = torch.zeros(0, num_mels, device=device)
    if options.overlap == "reference":
        return ReferenceStitcher(nothing)
    if options.overlap == "exact":
        return ExactStitcher(nothing, field, options.vocoder_context)
    return LookaheadStitcher(nothing, field, options.vocoder_context, options.cross_fade)


class ReferenceStitcher:
    """Half-chunk overlap under a Hamming cross-fade (reference behaviour, section 12): gain 1.08, none into the last chunk.

    Holds the sound behind the last sample handed out, and the mel frames of that sound. Chunks smaller than the stored sound,
    which the reference's own sizes never make, are cut at whole frames.
    """

    def __init__(self, nothing: torch.Tensor):
        self._mel = nothing
        self._sound = torch.zeros(0, device=nothing.device)
        self._frames = nothing
        self._final = False

    def window(self, mel: torch.Tensor, look_ahead: torch.Tensor, final: bool) -> torch.Tensor:
        self._frames = torch.cat((self._mel.to(mel), mel))
        self._final = final
        return self._frames

    def emit(self, wav: torch.Tensor) -> torch.Tensor:
        if self._final:
            return wav
        stored = len(self._sound)
        if stored == 0:
            ready = len(wav) // 2
            out = wav[:ready]
        else:
            ready = 2 * stored if len(wav) > 2 * stored else len(wav) // (2 * HOP_OUT) * HOP_OUT
            fade = ready // 2
            window = torch.hamming_window(ready, periodic=True, device=wav.device)
            out = wav[:ready].clone()
            out[:fade] = self._sound[:fade] * window[fade : 2 * fade] + wav[:fade] * window[:fade]
        self._sound = wav[ready:]
        self._mel = self._frames[ready // HOP_OUT :]
        return out


class ExactStitcher:
    """Hands out every sample whose whole receptive field is known: the stream equals vocoding the whole mel at once.

    With ``context`` frames on either side instead of the layers' bound it is earlier and cheaper, and approximate.
    Holds the frames [first, known) that samples from ``emitted`` on still need.
    """

    def __init__(self, nothing: torch.Tensor, field: ReceptiveField, context: int | None):
        self._field = field
        self._context = context
        self._mel = nothing
        self._first = self._emitted = self._ready = 0

    def window(self, mel: torch.Tensor, look_ahead: torch.Tensor, final: bool) -> torch.Tensor:
        self._mel = torch.cat((self._mel.to(mel), mel))
        known = (self._first + len(self._mel)) * HOP_OUT
        self._ready = max(self._emitted, known if final else known - self._right_samples())
        return self._mel if self._ready > self._emitted else self._mel[:0]

    def emit(self, wav: torch.Tensor) -> torch.Tensor:
        origin = self._first * HOP_OUT
        out = wav[self._emitted - origin : self._ready - origin] if len(wav) else wav
        self._emitted = self._ready
        needed = max(self._first, self._left_frame(self._emitted))
        self._mel = self._mel[needed - self._first :]
        self._first = needed
        return out

    def _right_samples(self) -> int:
        return self._field.right_samples if self._context is None else self._context * HOP_OUT

    def _left_frame(self, sample: int) -> int:
        return self._field.first_frame(sample) if self._context is None else sample // HOP_OUT - self._context


class LookaheadStitcher:
    """Hands out each chunk with its look-ahead frames as right context; an approximation of :class:`ExactStitcher`.

    The end of a chunk was rendered with look-ahead frames that the next chunk solves a little differently. Its last
    ``cross_fade`` samples are held back and faded into their second rendering, which has the true frames on its right; the
    two weights add up to 1. (Fading behind the joint instead would add the error of the provisional frames to samples that
    the second rendering has right: docs/log.md.) Holds those samples and the left context.
    """

    def __init__(self, nothing: torch.Tensor, field: ReceptiveField, context: int | None, cross_fade: int):
        left, right = (field.left_frames, field.right_frames) if context is None else (context, context)
        self._left_context = left + -(-cross_fade // HOP_OUT)
        self._right_context = right
        self._cross_fade = cross_fade
        self._context = nothing
        self._held = torch.zeros(0, device=nothing.device)
        self._begin = self._end = self._keep = 0

    def window(self, mel: torch.Tensor, look_ahead: torch.Tensor, final: bool) -> torch.Tensor:
        known = torch.cat((self._context.to(mel), mel))
        self._begin = len(self._context) * HOP_OUT - len(self._held)
        self._end = len(known) * HOP_OUT
        self._keep = 0 if final else min(self._cross_fade, self._end - self._begin)
        self._context = known[max(0, len(known) - self._left_context) :]
        return torch.cat((known, look_ahead[: self._right_context])) if self._end > self._begin else mel

    def emit(self, wav: torch.Tensor) -> torch.Tensor:
        out = wav[self._begin : self._end].clone()
        fade = len(self._held)
        ramp = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(fade, device=wav.device) + 0.5) / max(1, fade))
        out[:fade] += (1 - ramp) * (self._held - out[:fade])
        self._held = out[len(out) - self._keep :]
        return out[: len(out) - self._keep]
