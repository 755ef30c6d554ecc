"""The reference mode against every golden of the detokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from speech_models import SilentVocoder, load_speech, pooled_noise, rms_ratio

from antiphon.models.flow_dit import FlowDit
from antiphon.speech import StreamingDetokenizer, ode_schedule


class Recorder(FlowDit):
    """Notes time, rows, keys, states and velocities of every pass of a single stream."""

    def __init__(self, config, weights):
        super().__init__(config, weights)
        self.times = (*ode_schedule(29)[0], 999)
        self.passes: list[dict] = []

    def integrate(self, x, times, widths, condition, batch, window):
        for time, width in zip(times, widths, strict=True):
            self._note(x, self.velocity(x, time, condition, batch, window), time, batch)
            x = super().integrate(x, time[None], (width,), condition, batch, window)
        return x

    def fill_window(self, x, time, condition, batch, window, rows, places):
        self._note(x, self.velocity(x, time, condition, batch, window), time, batch)
        super().fill_window(x, time, condition, batch, window, rows, places)

    def _note(self, x, out, time, batch):
        t = self.times[int((self.time_table(self.times) - time).abs().sum(-1).argmin())]
        keys = len(x) + int(batch.cache_lens[0])
        self.passes.append({"t": t, "x": x.clone(), "v": out, "keys": keys, "condition": batch.token_ids})


def speak(detokenizer: StreamingDetokenizer, tokens: np.ndarray, golden: Path):
    """Stream, sound of every chunk, and state before and after every chunk as (start, cached rows)."""
    pool = np.load(golden / "noise.npz")["pool"]
    stream = detokenizer.open(noise=pooled_noise(pool, len(tokens)), record=True)
    stream.push(tokens)
    stream.finish()
    pieces, states = [], []
    while stream.ready:
        states.append((stream.start, stream.slot.num_rows))
        pieces += detokenizer.run([(stream, *stream.pop())])
    assert stream.done and stream.samples_out == sum(map(len, pieces)) == 1920 * len(tokens)
    return stream, pieces, states


def test_ode_times(fixtures, within_budget):
    grid = np.load(fixtures / "golden" / "constants.npz")["ode_times"]
    times, widths = ode_schedule(29)
    within_budget("grid", np.abs(np.concatenate(([0], np.cumsum(widths))) - grid).max(), 1e-6)
    assert list(times) == [1000 * k // 29 for k in range(29)]
    assert ode_schedule(1) == ((0,), (1.0,)) and ode_schedule(10)[0] == tuple(range(0, 1000, 100))


def test_hamming_window(fixtures, within_budget):
    golden = np.load(fixtures / "golden" / "constants.npz")["hamming_34560"]
    window = torch.hamming_window(34560, periodic=True).numpy()
    within_budget("hamming", np.abs(window[::64] - golden).max(), 1e-6)


def test_detokenizer_wave(fixtures, within_budget):
    arrays = np.load(fixtures / "golden" / "detok.npz")
    detokenizer = StreamingDetokenizer(*load_speech(fixtures / "tiny"))
    lengths = [int(key[7:]) for key in arrays.files if key.startswith("tokens_")]
    assert {1, 13, 31} <= set(lengths)
    for n in lengths:
        _, pieces, _ = speak(detokenizer, arrays[f"tokens_{n}"], fixtures / "golden")
        assert [len(piece) for piece in pieces] == arrays[f"chunk_samples_{n}"].tolist()
        rows = sum(len(noise) for noise in pooled_noise(np.zeros((6400, 1)), n))
        assert rows == int(arrays[f"noise_rows_{n}"])
        within_budget(f"wav of {n} tokens", np.abs(np.concatenate(pieces) - arrays[f"wav_{n}"]).max(), 2e-4)


@pytest.fixture(scope="module")
def streamed(tiny, golden):
    """157 tokens through the recorder: arrays, recorder, stream, pieces, states."""
    arrays = np.load(golden / "dit_stream.npz")
    dit, vocoder = load_speech(tiny)
    recorder = Recorder(dit.config, dit.weights)
    detokenizer = StreamingDetokenizer(recorder, vocoder)
    return arrays, recorder, *speak(detokenizer, arrays["tokens"], golden)


def test_stream_chunks(streamed, within_budget):
    arrays, _, stream, pieces, states = streamed
    assert len(pieces) == 6
    for i, (piece, state) in enumerate(zip(pieces, states, strict=True)):
        assert state == (int(arrays[f"chunk{i}.start"]), int(arrays[f"chunk{i}.kv_before"]))
        assert len(piece) == int(arrays[f"chunk{i}.wav_samples"])
        after = states[i + 1][1] if i < 5 else 0
        assert after == int(arrays[f"chunk{i}.kv_after"])
        within_budget(f"mel of chunk {i}", np.abs(stream.mel_chunks[i] - arrays[f"chunk{i}.mel"]).max(), 5e-4)
    within_budget("wav", np.abs(np.concatenate(pieces) - arrays["wav"]).max(), 2e-4)


def test_stream_passes(streamed, within_budget):
    arrays, recorder, *_ = streamed
    passes = iter(recorder.passes)
    for i in range(6):
        a = {key.split(".")[1]: arrays[key] for key in arrays.files if key.startswith(f"chunk{i}.")}
        mine = [next(passes) for _ in a["eval_t"]]
        assert [p["t"] for p in mine] == a["eval_t"].tolist()
        assert [len(p["x"]) for p in mine] == a["eval_rows"].tolist()
        assert [p["keys"] for p in mine] == a["eval_keys"].tolist()
        assert np.repeat(mine[0]["condition"].numpy(), 4).tolist() == a["condition"].tolist()
        if "velocity_first" in a:
            within_budget(f"first velocity {i}", np.abs(mine[0]["v"].numpy() - a["velocity_first"]).max(), 5e-4)
            for name, key in (("x", "states_row0_40_last"), ("v", "velocity_row0_40_last")):
                rows = np.stack([p[name][[0, 40, -1]].numpy() for p in mine])
                within_budget(f"{key} {i}", np.abs(rows - a[key]).max(), 5e-4)
    assert next(passes, None) is None


def test_cache_limit_and_position_reset(tiny, golden, within_budget):
    arrays = np.load(golden / "dit_long.npz")
    dit, vocoder = load_speech(tiny)
    silent = SilentVocoder(vocoder.config)
    stream, _, states = speak(StreamingDetokenizer(dit, silent), arrays["tokens"], golden)
    mel = np.concatenate(stream.mel_chunks)[:: int(arrays["mel_stride"])]
    within_budget("mel of 1130 tokens", np.abs(mel - arrays["mel"]).max(), 5e-4)
    assert [len(m) for m in stream.mel_chunks] == arrays["chunk_rows_out"].tolist()
    assert [start for start, _ in states] == arrays["chunk_start"].tolist()
    assert [start for start, _ in states[1:]] == arrays["chunk_next_start"][:-1].tolist()
    assert [cached for _, cached in states] == arrays["kv_before"].tolist()
    assert [cached for _, cached in states[1:]] == arrays["kv_after"][:-1].tolist()
    assert [len(frames) for frames in silent.seen] == arrays["vocoder_rows"].tolist()
    first = np.stack([frames[0].numpy() for frames in silent.seen])
    within_budget("first vocoder rows", np.abs(first - arrays["vocoder_in_first"]).max(), 5e-4)


def test_bfloat16_stays_inside_its_bounds(tiny, golden, within_budget):
    """The official code's own distance is 0.007 to 0.008 in the mel and 0.016 to 0.018 in the sound."""
    arrays = np.load(golden / "dit_stream.npz")
    detokenizer = StreamingDetokenizer(*load_speech(tiny, torch.bfloat16))
    pool = np.load(golden / "noise.npz")["pool"]
    stream = detokenizer.open(noise=pooled_noise(pool, len(arrays["tokens"])), record=True)
    stream.push(arrays["tokens"][:61])
    pieces = []
    while stream.ready:
        pieces += detokenizer.run([(stream, *stream.pop())])
    wav = np.concatenate(pieces)
    assert len(pieces) == 2 and wav.dtype == np.float32 and np.isfinite(wav).all()
    for i, mel in enumerate(stream.mel_chunks):
        within_budget(f"mel of chunk {i}", rms_ratio(mel, arrays[f"chunk{i}.mel"]), 0.02)
    within_budget("wav", rms_ratio(wav, arrays["wav"][: len(wav)]), 0.04)
