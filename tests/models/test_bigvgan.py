"""The vocoder against its goldens, layer by layer, and batches against each mel alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_models import half_band_taps, load_speech, rms_ratio, small_vocoder

from antiphon.models.bigvgan import TAIL, BigVgan, activate_padded, group_by_length
from antiphon_kernels import alias_free_snake


class Recorder(BigVgan):
    """Keeps what enters and leaves every stage, under the goldens' names."""

    def _upsample(self, stage, x):
        if stage == 0:
            self.seen = {"after_conv_pre_7": x}
        self.seen[f"after_up{stage}_7"] = super()._upsample(stage, x)
        return self.seen[f"after_up{stage}_7"]

    def _mean_of_blocks(self, stage, x, lengths):
        self.seen[f"after_stage{stage}_7"] = super()._mean_of_blocks(stage, x, lengths)
        return self.seen[f"after_stage{stage}_7"]


@pytest.fixture
def vocoder(fixtures) -> BigVgan:
    return load_speech(fixtures / "tiny")[1]


@pytest.fixture
def arrays(fixtures):
    return np.load(fixtures / "golden" / "vocoder.npz")


def test_wave_golden(vocoder, arrays, within_budget):
    lengths = sorted(int(key[4:]) for key in arrays.files if key.startswith("mel_"))
    assert lengths[:2] == [1, 7]
    for n in lengths:
        wav = vocoder(torch.from_numpy(arrays[f"mel_{n}"])[None])[0].numpy()
        within_budget(f"wav of {n} frames", np.abs(wav - arrays[f"wav_{n}"]).max(), 5e-5)


def test_every_stage_golden(vocoder, arrays, within_budget):
    recorder = Recorder(vocoder.config, vocoder.weights)
    recorder(torch.from_numpy(arrays["mel_7"])[None])
    names = [key for key in arrays.files if key.startswith("after_")]
    assert set(names) == set(recorder.seen) and len(names) == 15
    for name in names:
        value = recorder.seen[name][0]
        columns = value[:, :: max(1, value.shape[1] // 64)].numpy()
        within_budget(name, np.abs(columns - arrays[name]).max(), 5e-5)


def test_folded_weights_golden(vocoder, arrays, within_budget):
    for name, ours in (
        ("folded_conv_pre", vocoder.weights["conv_pre.weight"][:4]),
        ("folded_ups_6_0", vocoder.weights["ups.6.0.weight"]),
    ):
        within_budget(name, np.abs(ours.numpy() - arrays[name]).max(), 5e-5)


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(0, 24), min_size=1, max_size=4), max_padding=st.sampled_from([0.0, 0.25, 1.0]))
def test_batch_equals_each_mel_alone(lengths, max_padding):
    vocoder = small_vocoder()
    generator = torch.Generator().manual_seed(sum(lengths))
    mels = [torch.randn(n, 80, generator=generator) for n in lengths]
    for mel, wav in zip(mels, vocoder.run(mels, max_padding), strict=True):
        assert wav.shape == (480 * len(mel),) and wav.dtype == torch.float32
        if len(mel):
            torch.testing.assert_close(wav, vocoder(mel[None])[0], rtol=0, atol=2e-6)


def test_padded_batch_of_the_toy_checkpoint(vocoder, arrays):
    mel = torch.from_numpy(arrays["mel_7"])
    mels = [torch.cat((mel, mel, mel)), torch.cat((mel, mel, mel))[:19], torch.cat((mel, mel))]
    for one, wav in zip(mels, vocoder.run(mels, 1.0), strict=True):
        torch.testing.assert_close(wav, vocoder(one[None])[0], rtol=0, atol=2e-6)


def test_padded_activation_sees_its_own_end():
    torch.manual_seed(0)
    parameters = (torch.rand(3) + 0.5, torch.rand(3), half_band_taps(), half_band_taps())
    x, lengths = torch.randn(3, 3, 100), torch.tensor([100, TAIL, 61])
    out = activate_padded(lambda signal: alias_free_snake(signal, *parameters), x, lengths)
    for row, item, n in zip(out, x, lengths.tolist(), strict=True):
        torch.testing.assert_close(row[:, :n], alias_free_snake(item[None, :, :n], *parameters)[0], rtol=0, atol=1e-6)
        assert (row[:, n:] == 0).all()


@given(
    lengths=st.lists(st.integers(0, 300), max_size=20),
    max_padding=st.floats(0, 1),
    min_padded=st.integers(0, 10),
)
def test_grouping_keeps_everyone_and_bounds_the_padding(lengths, max_padding, min_padded):
    groups = group_by_length(lengths, max_padding, min_padded)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        shortest, longest = (f(lengths[i] for i in group) for f in (min, max))
        assert shortest == longest or (shortest >= min_padded and shortest >= (1 - max_padding) * longest)


def test_bfloat16_alone_stays_inside_its_bound(fixtures, arrays, within_budget):
    vocoder = load_speech(fixtures / "tiny", torch.bfloat16)[1]
    for key in (key for key in arrays.files if key.startswith("mel_") and key not in ("mel_1", "mel_240")):
        golden = arrays[key.replace("mel", "wav")]
        wav = vocoder(torch.from_numpy(arrays[key])[None])[0].numpy()
        assert np.isfinite(wav).all()
        within_budget(f"bfloat16 {key}", rms_ratio(wav, golden), 0.03)
