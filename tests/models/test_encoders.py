"""Both audio encoders on the toy checkpoint against every golden array of the recordings."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from antiphon.audio import load_audio, log_mel, num_tokens, split_segments
from antiphon.checkpoint import load_model_config, load_speech_tokenizer, load_whisper
from antiphon.errors import ConfigError
from antiphon.models.speech_tokenizer import SpeechTokenizer, padded_widths
from antiphon.models.whisper_encoder import WhisperEncoder


@dataclass
class Recording:
    """Segments of a recording and its golden arrays."""

    name: str
    segments: list[torch.Tensor]
    golden: dict[str, np.ndarray]

    @property
    def widths(self) -> list[int]:
        return padded_widths([len(segment) for segment in self.segments])


@pytest.fixture(scope="session")
def config(fixtures: Path):
    return load_model_config(fixtures / "tiny", load_detokenizer=False)


@pytest.fixture(scope="session")
def whisper(config) -> WhisperEncoder:
    return WhisperEncoder(load_whisper(config, torch.float32), config.whisper)


@pytest.fixture(scope="session")
def tokenizer(config) -> SpeechTokenizer:
    return SpeechTokenizer(load_speech_tokenizer(config), config.speech_tokenizer)


@pytest.fixture(scope="session")
def recordings(fixtures: Path) -> list[Recording]:
    entries = json.loads((fixtures / "golden" / "recordings.json").read_text())
    arrays = np.load(fixtures / "golden" / "recordings.npz")
    return [_recording(name, entry, fixtures, arrays) for name, entry in entries.items()]


def _recording(name: str, entry: dict, fixtures: Path, arrays) -> Recording:
    golden = {key.split(".", 1)[1]: arrays[key] for key in arrays if key.startswith(name + ".")}
    samples = golden["wav16k"] if "wav16k" in golden else load_audio(fixtures / entry["file"])
    samples = samples[: entry.get("first_samples")]
    return Recording(name, [torch.from_numpy(part) for part in split_segments(samples)], golden)


def _error(ours: torch.Tensor, golden: np.ndarray) -> float:
    assert ours.shape == golden.shape
    return float(np.abs(ours.float().numpy() - golden).max())


def test_all_recordings_are_read_exactly(recordings):
    assert len(recordings) in (5, 10)
    for recording in recordings:
        assert sum(map(len, recording.segments)) == recording.golden["num_samples"], recording.name


@torch.no_grad()
def test_glm_log_mel(recordings, tokenizer, within_budget):
    for recording in recordings:
        golden, stride = recording.golden, int(recording.golden["mel_stride"])
        padded = torch.stack([log_mel(segment, w) for segment, w in zip(recording.segments, recording.widths)])
        lengths = [len(segment) for segment in recording.segments]
        assert list(padded.shape) == golden["glm_mel_shape"].tolist()
        assert [-(-n // 160) for n in lengths] == golden["glm_frame_mask_len"].tolist()
        within_budget(f"{recording.name} glm_mel", _error(padded[:, :, ::stride], golden["glm_mel"]), 5e-4)
        for used, mel, n in zip(tokenizer.log_mels(recording.segments, recording.widths), padded, lengths):
            assert torch.equal(used[:, : 8 * num_tokens(n)], mel[:, : 8 * num_tokens(n)])


@torch.no_grad()
def test_glm_pooled_and_codes(recordings, tokenizer, within_budget):
    for recording in recordings:
        golden, lengths = recording.golden, [len(segment) for segment in recording.segments]
        pooled = tokenizer.pooled(tokenizer.log_mels(recording.segments, recording.widths), lengths)
        joined = torch.cat([x[: num_tokens(n)] for x, n in zip(pooled, lengths)])[:: int(golden["mel_stride"])]
        within_budget(f"{recording.name} glm_pooled", _error(joined, golden["glm_pooled"]), 5e-4)
        codes = torch.cat(tokenizer(recording.segments, recording.widths))
        assert codes.dtype == torch.int64 and np.array_equal(codes, golden["speech_tokens"]), recording.name


@torch.no_grad()
def test_whisper_log_mel(recordings, whisper, within_budget):
    for recording in recordings:
        golden, stride = recording.golden, int(recording.golden["mel_stride"])
        mels = whisper.log_mels(recording.segments)
        shown = mels[:, :, : golden["whisper_mel_frames"].max() : stride]
        within_budget(f"{recording.name} whisper_mel", _error(shown, golden["whisper_mel"]), 5e-4)
        within_budget(f"{recording.name} whisper_mel_tail", _error(mels[:, :, -1], golden["whisper_mel_tail"]), 5e-4)


@torch.no_grad()
def test_whisper_features(recordings, whisper, within_budget):
    for recording in recordings:
        features = torch.cat(whisper(recording.segments))
        assert len(features) == len(recording.golden["speech_tokens"])
        features = features[:: int(recording.golden["feature_stride"])]
        within_budget(f"{recording.name} whisper_feature", _error(features, recording.golden["whisper_feature"]), 1e-3)


@torch.no_grad()
def test_whisper_features_in_bfloat16(config, recordings, within_budget):
    whisper = WhisperEncoder(load_whisper(config, torch.bfloat16), config.whisper)
    for recording in recordings:
        features = torch.cat(whisper(recording.segments))
        assert features.dtype == torch.bfloat16 and features.isfinite().all()
        golden = recording.golden["whisper_feature"]
        difference = features[:: int(recording.golden["feature_stride"])].float().numpy() - golden
        ratio = float(np.sqrt(np.mean(difference**2) / np.mean(golden**2)))
        within_budget(f"{recording.name} whisper_feature bfloat16, rms ratio", ratio, 0.02)


@torch.no_grad()
def test_segments_of_different_recordings_in_one_batch(recordings, tokenizer, whisper, within_budget):
    chosen = [recording for recording in recordings if recording.name in ("voice4s", "short50ms", "stereo24k")]
    segments, widths = [s for r in chosen for s in r.segments], [w for r in chosen for w in r.widths]
    for recording, codes, features in zip(chosen, tokenizer(segments, widths), whisper(segments)):
        assert torch.equal(codes, tokenizer(recording.segments, recording.widths)[0])
        alone = whisper(recording.segments)[0]
        within_budget(f"{recording.name} features in a batch", _error(features, alone.numpy()), 1e-5)


def test_padding_follows_the_longest_segment_of_the_recording():
    assert padded_widths([1]) == [1280]
    assert padded_widths([1281]) == [2560]
    assert padded_widths([480_000, 1]) == [480_000, 480_000]
    assert padded_widths([480_000] * 128 + [5]) == [480_000] * 128 + [1280]


def test_another_pooling_is_refused(config):
    with pytest.raises(ConfigError, match="pooling_kernel_size is 2"):
        SpeechTokenizer({}, replace(config.speech_tokenizer, pooling_size=2))
