"""Recordings of any kind to mono float32 at 16 kHz."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from antiphon.audio import load_audio
from antiphon.audio.load import resample
from antiphon.errors import AudioError


def test_resampling_matches_golden(fixtures, within_budget):
    expected = np.load(fixtures / "golden" / "recordings.npz")["stereo24k.wav16k"]
    samples = load_audio(fixtures / "wav" / "stereo24k.wav")
    assert samples.dtype == np.float32 and samples.shape == expected.shape
    within_budget("stereo24k.wav16k", np.abs(samples - expected).max(), 2e-3)


@pytest.mark.parametrize("how", ["path", "string", "bytes", "file", "open file", "pair", "mapping", "tensor", "float"])
def test_every_kind_of_input_gives_the_same_samples(tmp_path, wav, tone, how):
    data = wav(tone.tobytes())
    path = tmp_path / "tone.wav"
    path.write_bytes(data)
    exact = tone.astype(np.float32) / 32768
    source = {
        "path": lambda: path,
        "string": lambda: str(path),
        "bytes": lambda: data,
        "file": lambda: io.BytesIO(data),
        "open file": lambda: path.open("rb"),
        "pair": lambda: (tone, 16000),
        "mapping": lambda: {"array": tone, "sampling_rate": 16000},
        "tensor": lambda: (torch.from_numpy(exact), 16000),
        "float": lambda: (exact.astype(np.float64), 16000.0),
    }[how]()
    assert np.array_equal(load_audio(source), exact)


@pytest.mark.parametrize(
    "container, codec, lossless",
    [
        ("flac", "flac", True),
        ("wav", "pcm_s24le", True),
        ("wav", "pcm_f32le", True),
        ("aiff", "pcm_s16be", True),
        ("wav", "pcm_mulaw", False),
        ("mp3", "mp3", False),
        ("ogg", "libopus", False),
        ("webm", "libopus", False),
        ("mp4", "aac", False),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats(encode, tone, container, codec, lossless, channels):
    rate = 48000 if codec == "libopus" else 16000
    data = encode(np.stack([tone] * channels), rate, container, codec)
    samples = load_audio(data)
    exact = resample(tone.astype(np.float32) / 32768, rate)
    if lossless:
        assert np.array_equal(samples, exact)
        return
    assert abs(len(samples) - len(exact)) < 1700, "codecs may add a frame of silence"
    similarity = np.correlate(np.pad(samples, 1700), exact).max() / (np.linalg.norm(samples) * np.linalg.norm(exact))
    assert similarity > 0.98


def test_channels_are_averaged(wav, tone):
    pair = np.stack([tone, tone // 3])
    exact = pair.astype(np.float32).mean(axis=0) / 32768
    assert np.array_equal(load_audio(wav(pair.T.tobytes(), channels=2)), exact)
    assert np.array_equal(load_audio((pair, 16000)), exact)
    assert np.array_equal(load_audio((pair.T, 16000)), exact)


@pytest.mark.parametrize(
    "dtype, values, expected",
    [
        (np.int16, [-32768, 0, 32767], [-1, 0, 32767 / 32768]),
        (np.int32, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
        (np.uint8, [0, 128, 192], [-1, 0, 0.5]),
        (np.float16, [-1, 0, 0.5], [-1, 0, 0.5]),
    ],
)
def test_integers_are_full_scale(dtype, values, expected):
    assert load_audio((np.array(values, dtype), 16000)).tolist() == np.float32(expected).tolist()


def test_eight_bit_and_32_bit_wav(wav):
    assert load_audio(wav(bytes([0, 128, 192]), bits=8)).tolist() == [-1.0, 0.0, 0.5]
    assert load_audio(wav(np.array([-(2**31), 2**30], "<i4").tobytes(), bits=32)).tolist() == [-1.0, 0.5]


@pytest.mark.parametrize("data_size", [0xFFFFFFFF, 0, 10**9])
def test_wav_with_a_wrong_size_in_its_header(wav, tone, data_size):
    samples = load_audio(wav(tone.tobytes(), data_size=data_size))
    assert np.array_equal(samples, tone.astype(np.float32) / 32768)


def test_wav_cut_in_the_middle_keeps_what_is_there(wav, tone):
    data = wav(tone.tobytes())
    assert np.array_equal(load_audio(data[: 44 + 2 * 5000]), tone[:5000].astype(np.float32) / 32768)


def test_wav_with_an_unknown_chunk_before_the_data(wav, tone):
    data = wav(tone.tobytes())
    assert len(load_audio(data[:36] + b"junk\x04\x00\x00\x00abcd" + data[36:])) == len(tone)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 96000])
@pytest.mark.parametrize("num_samples", [1, 2, 7, 441, 10007])
def test_resampled_length_is_rounded_up(rate, num_samples):
    samples = load_audio((np.full(num_samples, 0.25, np.float32), rate))
    assert len(samples) == -(-num_samples * 16000 // rate) and np.isfinite(samples).all()


def test_resampling_keeps_a_tone(within_budget):
    t44, t16 = np.arange(44100) / 44100, np.arange(16000) / 16000
    samples = load_audio((np.sin(2 * np.pi * 1000 * t44), 44100))
    within_budget("1 kHz tone from 44.1 kHz", np.abs(samples - np.sin(2 * np.pi * 1000 * t16))[200:-200].max(), 2e-4)


def test_longer_than_allowed(wav, tone):
    assert len(load_audio(wav(tone.tobytes()), max_seconds=1.0)) == 16000
    for source in (wav(tone.tobytes()), (tone, 16000)):
        with pytest.raises(AudioError, match=r"longer than 0\.5 s"):
            load_audio(source, max_seconds=0.5)
