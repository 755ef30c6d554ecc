"""Stitchers against vocoding the whole mel at once, over random chunkings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from speech_models import SMALL_VOCODER, small_vocoder

from antiphon.speech import ReceptiveField, SpeechOptions
from antiphon.speech.stitching import open_stitcher

FIELD = ReceptiveField.of(SMALL_VOCODER)
LOOK_AHEAD = 16


def mel_of(num_frames: int) -> torch.Tensor:
    return torch.randn(num_frames, 80, generator=torch.Generator().manual_seed(num_frames))


def whole(mel: torch.Tensor) -> torch.Tensor:
    return small_vocoder()(mel[None])[0]


def stitch(mel: torch.Tensor, sizes: list[int], options: SpeechOptions, look_ahead=None) -> list[torch.Tensor]:
    """Feed ``mel`` in chunks of ``sizes`` frames; the last one takes the rest. ``look_ahead``: where its frames come from."""
    stitcher = open_stitcher(options, FIELD, 80, "cpu")
    look_ahead = mel if look_ahead is None else look_ahead
    bounds = [0, *[int(b) for b in np.cumsum(sizes) if b < len(mel)], len(mel)]
    pieces = []
    for start, end in pairwise(bounds):
        frames = stitcher.window(mel[start:end], look_ahead[end : end + LOOK_AHEAD], end == len(mel))
        pieces.append(stitcher.emit(whole(frames) if len(frames) else torch.zeros(0)))
    return pieces


chunkings = st.lists(st.integers(1, 40), max_size=6)


@settings(max_examples=25, deadline=None)
@given(num_frames=st.integers(1, 110), sizes=chunkings)
@example(num_frames=1, sizes=[])
@example(num_frames=100, sizes=[1] * 6)
def test_exact_equals_the_whole_mel_at_once(num_frames, sizes):
    mel = mel_of(num_frames)
    pieces = stitch(mel, sizes, SpeechOptions(overlap="exact"))
    torch.testing.assert_close(torch.cat(pieces), whole(mel), rtol=0, atol=1e-6)
    known, out = 0, 0
    for size, piece in zip(sizes, pieces[:-1], strict=False):
        known, out = known + size, out + len(piece)
        assert out == max(0, 480 * known - FIELD.right_samples), "every sample whose receptive field is known is out"


@settings(max_examples=10, deadline=None)
@given(num_frames=st.integers(1, 110), sizes=chunkings, fade=st.sampled_from([0, 1, 240, 1920]))
def test_lookahead_with_true_frames_ahead_is_exact(num_frames, sizes, fade):
    """Where the look-ahead turns out as promised, and covers the receptive field, nothing is approximated."""
    mel = mel_of(num_frames)
    pieces = stitch(mel, [max(4, n) for n in sizes], SpeechOptions(overlap="lookahead", cross_fade=fade))
    torch.testing.assert_close(torch.cat(pieces), whole(mel), rtol=0, atol=1e-6)


def test_lookahead_gives_a_chunk_as_soon_as_it_is_solved_and_fades_into_the_second_rendering():
    mel, provisional = mel_of(60), mel_of(60) + 0.5
    first, last = stitch(mel, [24], SpeechOptions(overlap="lookahead", cross_fade=480), provisional)
    assert len(first) == 24 * 480 - 480 and len(last) == 36 * 480 + 480
    old, new = whole(torch.cat((mel[:24], provisional[24:40])))[: 24 * 480], whole(mel)
    torch.testing.assert_close(first, old[: len(first)], rtol=0, atol=1e-6)
    torch.testing.assert_close(last[480:], new[24 * 480 :], rtol=0, atol=1e-6)
    old, new = old[len(first) :], new[len(first) : 24 * 480]
    clear = (new - old).abs() > 1e-3
    weights = ((last[:480] - old) / (new - old))[clear]
    assert len(weights) > 100 and weights.min() > -0.01 and weights.max() < 1.01
    assert weights[0] < 0.1 and weights[-1] > 0.9


@pytest.mark.parametrize("overlap", ["exact", "lookahead"])
def test_a_shorter_context_costs_accuracy_and_saves_work(overlap):
    mel, error, frames = mel_of(100), {}, {}
    for context in (1, 3, FIELD.left_frames):
        options = SpeechOptions(overlap=overlap, vocoder_context=context)
        error[context] = (torch.cat(stitch(mel, [30, 20, 20], options)) - whole(mel)).abs().max().item()
        stitcher = open_stitcher(options, FIELD, 80, "cpu")
        stitcher.emit(whole(stitcher.window(mel[:50], mel[50:66], False)))
        frames[context] = len(stitcher.window(mel[50:90], mel[90:], False))
    print(f"{overlap}: error by context {error}")
    assert error[1] > error[3] > 1000 * error[FIELD.left_frames] and error[FIELD.left_frames] <= 1e-6
    assert frames[1] < frames[3] < frames[FIELD.left_frames]


@given(sizes=st.lists(st.integers(1, 30).map(lambda n: 4 * n), min_size=1, max_size=8))
def test_reference_overlap_keeps_the_length_for_any_chunking(sizes):
    """Sound that names its own position: outside the faded stretches every sample is where it belongs."""
    stitcher = open_stitcher(SpeechOptions(), FIELD, 1, "cpu")
    frames = torch.arange(sum(sizes), dtype=torch.float32)[:, None]
    pieces, start = [], 0
    for index, size in enumerate(sizes):
        window = stitcher.window(frames[start : start + size], frames[:0], index == len(sizes) - 1)
        wav = (window.repeat(1, 480) + torch.arange(480) / 480).flatten()
        pieces.append(stitcher.emit(wav))
        start += size
    out = torch.cat(pieces)
    assert len(out) == 480 * sum(sizes)
    truth = torch.arange(len(out)) / 480
    gain = out[480:] / truth[480:]
    assert ((gain - 1).abs() < 1e-3).logical_or((gain - 1.08).abs() < 1e-3).all()


def test_reference_overlap_of_full_chunks():
    """Stored rows alternate 36, 84, 36 and the output 36, 72, 168 rows (reference behaviour, section 12)."""
    stitcher = open_stitcher(SpeechOptions(), FIELD, 80, "cpu")
    given_rows, out_rows = [], []
    for size in (72, 120, 120, 120, 120):
        window = stitcher.window(torch.zeros(size, 80), torch.zeros(48, 80), False)
        given_rows.append(len(window))
        out_rows.append(len(stitcher.emit(torch.zeros(480 * len(window)))) / 480)
    assert given_rows == [72, 156, 204, 156, 204] and out_rows == [36, 72, 168, 72, 168]
