"""The encoder runner: alone equals together, bit for bit; the cache changes nothing but the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from antiphon.audio import num_tokens
from antiphon.checkpoint import load_model_config, load_speech_tokenizer, load_whisper
from antiphon.execution.audio_encoder import AudioEncoder, content_hash
from antiphon.models.speech_tokenizer import SpeechTokenizer
from antiphon.models.whisper_encoder import WhisperEncoder

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
LENGTHS = (800, 1280, 37_000, 480_001, 5_000, 37_000)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def parts(request):
    config = load_model_config(TINY, load_detokenizer=False)
    whisper = WhisperEncoder(load_whisper(config, request.param), config.whisper)
    return whisper, SpeechTokenizer(load_speech_tokenizer(config), config.speech_tokenizer)


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [(rng.standard_normal(n) * rng.uniform(0.01, 0.3)).astype(np.float32) for n in LENGTHS]


@pytest.fixture
def passes(parts, monkeypatch):
    """How many segments went through each encoder."""
    counts = {"whisper": 0, "tokenizer": 0}
    for name, encoder in zip(counts, parts):
        call = type(encoder).__call__

        def counted(self, segments, *rest, name=name, call=call):
            counts[name] += len(segments)
            return call(self, segments, *rest)

        monkeypatch.setattr(type(encoder), "__call__", counted)
    return counts


def test_alone_equals_together(parts, recordings):
    encoder = AudioEncoder(*parts)
    for together, samples in zip(encoder.encode(recordings), recordings):
        (alone,) = encoder.encode([samples])
        assert torch.equal(together.speech_codes, alone.speech_codes)
        assert torch.equal(together.features, alone.features)
        assert together.num_tokens == num_tokens(len(samples)) == len(together.features)
        assert together.content_hash == content_hash(samples) and together.num_samples == len(samples)


def test_several_segments_per_pass(parts, recordings, within_budget):
    alone = AudioEncoder(*parts).encode(recordings)
    scale = 1e-5 if parts[0].dtype == torch.float32 else 0.06
    for a, b in zip(alone, AudioEncoder(*parts, segments_per_pass=4).encode(recordings)):
        assert torch.equal(a.speech_codes, b.speech_codes)
        error = (a.features.float() - b.features.float()).abs().max().item()
        within_budget(f"{a.num_samples} samples, four per pass, {parts[0].dtype}", error, scale)


def test_order_and_repetition(parts, recordings, passes):
    encoder = AudioEncoder(*parts)
    first, second = recordings[0], recordings[2]
    forth = encoder.encode([first, second, first.copy()])
    assert passes == {"whisper": 2, "tokenizer": 2}, "the repeated recording is encoded once"
    assert torch.equal(forth[0].features, forth[2].features)
    assert [audio.num_samples for audio in forth] == [800, 37_000, 800]


def test_features_only_where_wanted(parts, recordings, passes):
    codes_only, full = AudioEncoder(*parts).encode(recordings[:2], [False, True])
    assert codes_only.features is None and full.features is not None
    assert passes == {"whisper": 1, "tokenizer": 2}


def test_nothing_to_encode(parts):
    assert AudioEncoder(*parts).encode([]) == []


def test_the_cache_saves_the_work_and_keeps_the_result(parts, recordings, passes):
    encoder = AudioEncoder(*parts, cache_bytes=1 << 20)
    (codes_only,) = encoder.encode(recordings[2:3], [False])
    (full,) = encoder.encode(recordings[2:3])
    (again,) = encoder.encode([recordings[2].copy()])
    (codes_again,) = encoder.encode(recordings[2:3], [False])
    assert passes == {"whisper": 1, "tokenizer": 1}
    assert codes_only.features is None and codes_again.features is None
    assert torch.equal(full.features, again.features) and torch.equal(full.speech_codes, codes_only.speech_codes)


def test_the_cache_drops_the_least_recently_used(parts, recordings, passes):
    one = AudioEncoder(*parts).encode(recordings[4:5])[0]
    size = one.features.nbytes + one.speech_codes.nbytes
    encoder = AudioEncoder(*parts, cache_bytes=2 * size)
    a, b, c = (recordings[4] * factor for factor in (np.float32(1), np.float32(0.5), np.float32(0.25)))
    for samples in (a, b, a, c):
        encoder.encode([samples])
    assert encoder._cache.used == 2 * size
    passes.update(whisper=0)
    encoder.encode([a])
    encoder.encode([c])
    assert passes["whisper"] == 0
    encoder.encode([b])
    assert passes["whisper"] == 1
    encoder.encode([recordings[3]])
    assert encoder._cache.used <= 2 * size, "a result larger than the cache is not kept"
