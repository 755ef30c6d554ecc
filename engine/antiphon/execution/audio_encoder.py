"""Recordings to what the language model reads: speech codes and continuous features, cached by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..audio.segments import split_segments
from ..models.speech_tokenizer import SpeechTokenizer, padded_widths
from ..models.whisper_encoder import WhisperEncoder
from ..upload import upload
from .side_stream import Arrivals, SideStream, hand_over


@dataclass(frozen=True, eq=False)
class EncodedAudio:
    """One recording after both encoders.

    Attributes:
        speech_codes: int64 [n] on the CPU, without the token offset.
        features: [n, 4 d] in the dtype and on the device of the Whisper encoder; None if they were not asked for.
        content_hash: 16 bytes that identify the samples.
        num_samples: length at 16 kHz; n = ceil(num_samples / 1280).
    """

    speech_codes: torch.Tensor
    features: torch.Tensor | None
    content_hash: bytes
    num_samples: int

    @property
    def num_tokens(self) -> int:
        """Speech codes, equal to feature rows."""
        return len(self.speech_codes)


def content_hash(samples: np.ndarray) -> bytes:
    """BLAKE2b of float32 samples, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(samples, dtype="<f4"), digest_size=16).digest()


class AudioEncoder:
    """Runs both encoders over several recordings at once.

    Args:
        segments_per_pass: segments of 30 s that go through an encoder together. With 1 a result is bit for bit
            independent of what else is encoded; more can differ in the last bits where the matrix library chooses its
            kernel by size, and pays on a device that one segment does not fill.
        cache_bytes: memory for results by content, least recently used out first; 0 keeps nothing.
    """

    def __init__(
        self, whisper: WhisperEncoder, tokenizer: SpeechTokenizer, segments_per_pass: int = 1, cache_bytes: int = 0
    ):
        self.whisper, self.tokenizer = whisper, tokenizer
        self.segments_per_pass = segments_per_pass
        self._cache = _Cache(cache_bytes)
        self._side = SideStream(whisper.device)

    def encode(
        self, recordings: Sequence[np.ndarray], with_features: Sequence[bool] | None = None
    ) -> list[EncodedAudio]:
        """Codes, and features where asked for, of recordings; the same recording twice is encoded once.

        Args:
            recordings: float32 [N] at 16 kHz each, N >= 1.
            with_features: per recording; None for all.
        """
        return self.start(recordings, with_features).results()

    def start(self, recordings: Sequence[np.ndarray], with_features: Sequence[bool] | None = None) -> Encoding:
        """As :meth:`encode`, without waiting: on a GPU both encoders run beside the language model."""
        wanted = [True] * len(recordings) if with_features is None else list(with_features)
        hashes = [content_hash(samples) for samples in recordings]
        known = {key: found for key in hashes if (found := self._cache.get(key)) is not None}
        fresh = {key: samples for key, samples in zip(hashes, recordings) if key not in known}
        lacking = {
            key: samples
            for key, samples, need in zip(hashes, recordings, wanted)
            if need and (key in fresh or known[key].features is None)
        }
        with self._side.work():
            codes, features = self._codes(fresh), self._features(lacking)
            arrivals = Arrivals(list(codes.values()), list(features.values()))
        lengths = {key: len(samples) for key, samples in fresh.items()}
        return Encoding(self._cache, known, lengths, features, arrivals, list(zip(hashes, wanted)))

    def _codes(self, recordings: dict[bytes, np.ndarray]) -> dict[bytes, torch.Tensor]:
        segments = {key: split_segments(samples) for key, samples in recordings.items()}
        widths = [w for parts in segments.values() for w in padded_widths([len(part) for part in parts])]
        codes = self.run_segments(self.tokenizer, [part for parts in segments.values() for part in parts], widths)
        return {key: _join(codes, len(parts)) for key, parts in segments.items()}

    def _features(self, recordings: dict[bytes, np.ndarray]) -> dict[bytes, torch.Tensor]:
        segments = {key: split_segments(samples) for key, samples in recordings.items()}
        rows = self.run_segments(self.whisper, [part for parts in segments.values() for part in parts])
        return {key: _join(rows, len(parts)) for key, parts in segments.items()}

    @torch.no_grad()
    def run_segments(self, encoder, segments: list[np.ndarray], *arguments: list[int]):
        """An iterator over one result per segment; segments of like length go through the encoder together."""
        order = sorted(range(len(segments)), key=lambda i: len(segments[i]))
        results: list[torch.Tensor | None] = [None] * len(segments)
        for start in range(0, len(order), self.segments_per_pass):
            chosen = order[start : start + self.segments_per_pass]
            batch = upload([np.ascontiguousarray(segments[i]) for i in chosen], encoder.device)
            outputs = encoder(batch, *([values[i] for i in chosen] for values in arguments))
            for i, output in zip(chosen, outputs):
                results[i] = output
        return iter(results)


def _join(results, count: int) -> torch.Tensor:
    """The next ``count`` results of the iterator, joined along the first dimension."""
    return torch.cat([next(results) for _ in range(count)])


class Encoding:
    """Recordings that have been handed to the encoders."""

    def __init__(
        self,
        cache: _Cache,
        known: dict[bytes, EncodedAudio],
        lengths: dict[bytes, int],
        features: dict[bytes, torch.Tensor],
        arrivals: Arrivals,
        asked: list[tuple[bytes, bool]],
    ):
        """``lengths``: samples of the recordings whose codes are under way, in the order of ``arrivals``; ``asked``: content
        and whether features are wanted, per recording."""
        self._cache, self._known, self._lengths = cache, known, lengths
        self._features, self._arrivals, self._asked = features, arrivals, asked

    @property
    def ready(self) -> bool:
        """Whether :meth:`results` would not wait."""
        return self._arrivals.ready

    def results(self) -> list[EncodedAudio]:
        """Wait for the encoders, and remember what they made; in the order of the recordings."""
        known = dict(self._known)
        for (key, length), codes in zip(self._lengths.items(), self._arrivals.arrays(), strict=True):
            known[key] = EncodedAudio(torch.from_numpy(codes), None, key, length)
        hand_over(list(self._features.values()))
        known |= {key: replace(known[key], features=rows) for key, rows in self._features.items()}
        for key, _ in self._asked:
            self._cache.put(known[key])
        return [known[key] if need else replace(known[key], features=None) for key, need in self._asked]


class _Cache:
    """Least recently used results, bounded in bytes."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._entries: OrderedDict[bytes, EncodedAudio] = OrderedDict()

    def get(self, key: bytes) -> EncodedAudio | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, entry: EncodedAudio) -> None:
        before = self._entries.pop(entry.content_hash, None)
        self.used -= _num_bytes(before)
        if _num_bytes(entry) <= self.limit:
            self._entries[entry.content_hash] = entry
            self.used += _num_bytes(entry)
        while self.used > self.limit:
            self.used -= _num_bytes(self._entries.popitem(last=False)[1])


def _num_bytes(entry: EncodedAudio | None) -> int:
    tensors = () if entry is None else (entry.speech_codes, entry.features)
    return sum(t.nbytes for t in tensors if t is not None)
