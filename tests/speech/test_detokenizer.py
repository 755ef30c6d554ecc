"""Streams in a batch against each alone, and what a stream promises about its life."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_models import SilentVocoder, load_speech, small_vocoder

from antiphon.errors import ConfigError, EngineError, InputError
from antiphon.models.flow_dit import FlowDit
from antiphon.speech import SpeechOptions, SpeechStream, StreamingDetokenizer

FAST = {"ode_steps": 2, "first_chunk": 5, "chunk": 6, "look_ahead": 3}


def toy_dit() -> FlowDit:
    """The toy checkpoint's DiT, from the copied core subset."""
    return load_speech(Path(__file__).resolve().parents[1] / "data" / "tiny")[0]


def make(max_streams: int = 1, vocoder=None) -> StreamingDetokenizer:
    return StreamingDetokenizer(toy_dit(), vocoder or small_vocoder(), max_streams)


def tokens_of(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 512, n).tolist()


def run_all(detokenizer: StreamingDetokenizer, streams: list[SpeechStream]) -> list[np.ndarray]:
    """Run every stream that is ready, together, until none is; returns each stream's sound."""
    pieces: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] for _ in streams]
    while ready := [i for i, stream in enumerate(streams) if stream.ready]:
        work = [(streams[i], *streams[i].pop()) for i in ready]
        for i, piece in zip(ready, detokenizer.run(work), strict=True):
            pieces[i].append(piece)
    return [np.concatenate(p) for p in pieces]


def test_a_batch_of_streams_equals_each_alone():
    modes = ("reference", "exact", "lookahead", "reference", "exact")
    options = [SpeechOptions(**(FAST | {"overlap": mode, "ode_steps": 2 + i % 2})) for i, mode in enumerate(modes)]
    lengths = (17, 23, 4, 11, 1)
    detokenizer = make(max_streams=len(modes))
    streams = [detokenizer.open(o, seed=i, record=True) for i, o in enumerate(options)]
    for stream, n in zip(streams, lengths, strict=True):
        stream.push(tokens_of(n))
        stream.finish()
    together = run_all(detokenizer, streams)
    assert detokenizer.pool.num_free == len(modes)
    for i, (n, o, wav) in enumerate(zip(lengths, options, together, strict=True)):
        alone = make().detokenize(tokens_of(n), o, seed=i)
        assert alone.shape == wav.shape == (1920 * n,) and wav.dtype == np.float32
        np.testing.assert_allclose(wav, alone, rtol=0, atol=2e-5)


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    arrivals=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    overlap=st.sampled_from(["reference", "exact", "lookahead"]),
)
def test_sound_does_not_depend_on_when_tokens_arrive_or_who_else_speaks(lengths, arrivals, overlap):
    options = SpeechOptions(**(FAST | {"overlap": overlap}))
    detokenizer = make(max_streams=len(lengths))
    streams = [detokenizer.open(options, seed=i) for i in range(len(lengths))]
    sounds = [[np.zeros(0, np.float32)] for _ in lengths]
    sent = [0] * len(lengths)
    for step, size in enumerate(arrivals + [30] * len(lengths)):
        i = step % len(lengths)
        if sent[i] < lengths[i] or not step:
            streams[i].push(tokens_of(lengths[i])[sent[i] : sent[i] + size])
            sent[i] += size
        for sound, piece in zip(sounds, run_all(detokenizer, streams), strict=True):
            sound.append(piece)
    for i, stream in enumerate(streams):
        stream.push(tokens_of(lengths[i])[sent[i] :])
        stream.finish()
    for sound, piece in zip(sounds, run_all(detokenizer, streams), strict=True):
        sound.append(piece)
    assert detokenizer.pool.num_free == len(lengths)
    for i, n in enumerate(lengths):
        alone = make().detokenize(tokens_of(n), options, seed=i)
        np.testing.assert_allclose(np.concatenate(sounds[i]), alone, rtol=0, atol=2e-5)


def test_exact_stream_equals_vocoding_its_recorded_mel_at_once():
    detokenizer = make()
    stream = detokenizer.open(SpeechOptions(**(FAST | {"overlap": "exact"})), seed=3, record=True)
    stream.push(tokens_of(40))
    stream.finish()
    (wav,) = run_all(detokenizer, [stream])
    mel = torch.from_numpy(np.concatenate(stream.mel_chunks))
    assert mel.shape == (160, 80) and len(stream.mel_chunks) == 7
    np.testing.assert_allclose(wav, small_vocoder()(mel[None])[0].numpy(), rtol=0, atol=4e-6)


def test_the_same_seed_gives_the_same_samples_and_another_does_not():
    options = SpeechOptions(**FAST)
    a, b, c = (make().detokenize(tokens_of(9), options, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_eager_streams_speak_a_token_earlier_and_keep_their_length():
    for overlap in ("reference", "exact", "lookahead"):
        detokenizer = make()
        stream = detokenizer.open(SpeechOptions(**(FAST | {"overlap": overlap, "eager": True})), seed=0)
        assert stream.push(tokens_of(5)) and stream.tokens_needed == 0
        early = run_all(detokenizer, [stream])[0]
        assert stream.tokens_needed == 6 and not stream.ready
        assert stream.finish(), "the look-ahead is still owed"
        late = run_all(detokenizer, [stream])[0]
        assert len(early) + len(late) == 1920 * 5 and stream.done


def test_growing_chunks_give_every_sample():
    options = SpeechOptions(first_chunk=4, chunk=9, look_ahead=3, ode_steps=1, chunk_growth=1.5)
    detokenizer = make()
    stream = detokenizer.open(options, seed=0, record=True)
    stream.push(tokens_of(30))
    stream.finish()
    assert len(run_all(detokenizer, [stream])[0]) == 1920 * 30
    assert [len(mel) // 4 for mel in stream.mel_chunks] == [1, 2, 3, 4, 6, 9, 5]


def test_positions_never_run_out_whatever_the_chunk_sizes():
    """Chunks that grow faster than the reference's rule foresees still fit below max_positions."""
    options = SpeechOptions(first_chunk=60, chunk=900, look_ahead=30, ode_steps=1, chunk_growth=2.5)
    silent = SilentVocoder(small_vocoder().config)
    detokenizer = make(vocoder=silent)
    stream = detokenizer.open(options, seed=0, record=True)
    stream.push([1] * 3000)
    stream.finish()
    while stream.ready:
        tokens, final = stream.pop()
        job = stream.plan(tokens, final)
        assert job.start + job.num_rows <= 4096
        detokenizer.run([(stream, tokens, final)])
    assert sum(map(len, stream.mel_chunks)) == 12000


def test_no_tokens_mean_no_sound():
    detokenizer = make()
    assert len(detokenizer.detokenize([], SpeechOptions())) == 0
    stream = detokenizer.open()
    assert not stream.finish() and stream.done and detokenizer.pool.num_free == 1


def test_closing_at_any_moment_frees_the_window():
    detokenizer = make(max_streams=2)
    a, b = (detokenizer.open(SpeechOptions(**FAST), seed=i) for i in range(2))
    with pytest.raises(EngineError, match="all 2 speech streams"):
        detokenizer.open()
    for stream in (a, b):
        stream.push(tokens_of(20))
    work = [(stream, *stream.pop()) for stream in (a, b)]
    detokenizer.run(work)
    a.close()
    a.close()
    assert detokenizer.pool.num_free == 1 and a.done and not a.ready
    with pytest.raises(EngineError, match="closed"):
        detokenizer.run([(a, [1], True)])
    with pytest.raises(EngineError, match="once per call"):
        detokenizer.run([(b, [1], False), (b, [2], False)])


def test_a_reused_window_does_not_remember_its_last_stream():
    detokenizer = make()
    options = SpeechOptions(**FAST)
    first = detokenizer.detokenize(tokens_of(20), options, seed=1)
    detokenizer.detokenize(tokens_of(33), options, seed=2)
    assert np.array_equal(detokenizer.detokenize(tokens_of(20), options, seed=1), first)


def test_noise_that_does_not_fit_names_the_stream_and_harms_nobody():
    detokenizer = make(max_streams=2)
    good = detokenizer.open(SpeechOptions(**FAST), seed=4)
    bad = detokenizer.open(SpeechOptions(**FAST), noise=[np.zeros((3, 80))])
    for stream in (good, bad):
        stream.push(tokens_of(4))
        stream.finish()
    work = [(stream, *stream.pop()) for stream in (good, bad)]
    with pytest.raises(InputError, match="expected \\(16, 80\\)") as caught:
        detokenizer.run(work)
    assert caught.value.stream is bad
    (piece,) = detokenizer.run(work[:1])
    assert np.array_equal(piece, make().detokenize(tokens_of(4), SpeechOptions(**FAST), seed=4))


def test_wrong_tokens_and_chunks_are_refused():
    detokenizer = make()
    stream = detokenizer.open()
    for token in (-1, 512):
        with pytest.raises(InputError, match=f"speech token {token} is outside 0..511"):
            stream.push([3, token])
    stream.close()
    with pytest.raises(InputError, match="exceeds the network's 4096 positions"):
        detokenizer.open(SpeechOptions(first_chunk=900, chunk=900, look_ahead=200))
    assert detokenizer.pool.num_free == 1


def test_a_vocoder_of_another_hop_is_refused():
    other = dataclasses.replace(small_vocoder().config, upsample_rates=(5, 2, 2, 2, 2, 3, 3))
    with pytest.raises(ConfigError, match="makes 720 samples"):
        StreamingDetokenizer(toy_dit(), SilentVocoder(other))
