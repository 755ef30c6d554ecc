"""How far the overlap modes of the streaming vocoder are from vocoding the whole mel at once.

    python -m benchmarks.overlap [--model DIR] [--audio WAV…] [--json OUT]

Speech codes come from real recordings, so the mels are real ones. Every mode gets the same noise, hence the same mels: what
differs is only how the sound is put together. Columns: rms of the difference relative to the rms of the exact sound, in dB
(over all, and within 100 ms of a joint of the pieces); mean distance of log spectra in dB; frames vocoded per frame heard; tokens
until the first sample. Python 3.10+, any device with a CPU; nothing here measures time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from antiphon.audio import load_audio
from antiphon.checkpoint import load_flow, load_model_config, load_speech_tokenizer, load_vocoder
from antiphon.config import HOP_OUT
from antiphon.models.bigvgan import BigVgan
from antiphon.models.flow_dit import FlowDit
from antiphon.models.speech_tokenizer import SpeechTokenizer, padded_widths
from antiphon.speech import SpeechOptions, StreamingDetokenizer

JOINT_SAMPLES = 2400
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class OverlapError:
    """One row of the table; decibels are relative to the exact sound."""

    mode: str
    difference_db: float
    joint_difference_db: float
    log_spectral_distance_db: float
    vocoded_per_heard: float
    tokens_to_first_sample: float


class CountingVocoder:
    """Passes mels on and counts the frames."""

    def __init__(self, vocoder: BigVgan):
        self.vocoder, self.config, self.frames = vocoder, vocoder.config, 0

    def run(self, mels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.frames += sum(len(mel) for mel in mels)
        return self.vocoder.run(mels)


def modes(**chunking) -> Iterator[tuple[str, SpeechOptions]]:
    """What is compared with the exact mode, at one way of chunking."""
    yield "reference", SpeechOptions(**chunking)
    for context in (4, 6, 8):
        yield f"exact, context {context}", SpeechOptions(overlap="exact", vocoder_context=context, **chunking)
    for fade in (0, 120, 240, 480, 960):
        yield f"lookahead, hold {fade}", SpeechOptions(overlap="lookahead", cross_fade=fade, **chunking)


def speak(detokenizer: StreamingDetokenizer, tokens: np.ndarray, options: SpeechOptions, seed: int):
    """The sound, the offsets at which a later piece begins, and the tokens until the first sample."""
    stream = detokenizer.open(options, seed=seed)
    pieces: list[np.ndarray] = []
    first = len(tokens)
    for index, token in enumerate(tokens):
        ready = stream.push([token])
        if index == len(tokens) - 1:
            ready = stream.finish()
        while ready and stream.ready:
            pieces += detokenizer.run([(stream, *stream.pop())])
            if len(pieces[-1]) and sum(map(len, pieces)) == len(pieces[-1]):
                first = index + 1
    return np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces])[:-1], first


def compare(exact: Sequence[np.ndarray], spoken: Sequence[tuple], frames: int, name: str) -> OverlapError:
    """Errors of ``spoken`` (results of :func:`speak`) against the ``exact`` sounds."""
    differences = [wav - truth for (wav, _, _), truth in zip(spoken, exact)]
    near = [joint_mask(len(truth), joints) for (_, joints, _), truth in zip(spoken, exact)]
    distances = [log_spectral_distance(wav, truth) for (wav, _, _), truth in zip(spoken, exact)]
    mask, truth, difference = (np.concatenate(parts) for parts in (near, exact, differences))
    return OverlapError(
        name,
        decibels(difference, truth),
        decibels(difference[mask], truth[mask]),
        float(np.mean(distances)),
        frames * HOP_OUT / len(truth),
        float(np.mean([first for _, _, first in spoken])),
    )


def joint_mask(num_samples: int, joints: np.ndarray) -> np.ndarray:
    """True within 100 ms of a joint."""
    mask = np.zeros(num_samples, bool)
    for joint in joints:
        mask[max(0, joint - JOINT_SAMPLES) : joint + JOINT_SAMPLES] = True
    return mask


def decibels(difference: np.ndarray, truth: np.ndarray) -> float:
    """rms of ``difference`` relative to the rms of ``truth``; never below -160."""
    ratio = np.sqrt(np.mean(np.square(difference, dtype=np.float64)) / np.mean(np.square(truth, dtype=np.float64)))
    return float(20 * np.log10(max(ratio, 1e-8)))


def log_spectral_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over frames of the rms over bins of the level difference in dB; bins 60 dB under the peak count as silent."""
    spectra = []
    for wav in (a, b):
        spectrum = torch.stft(
            torch.from_numpy(wav), 1024, 256, window=torch.hann_window(1024), return_complex=True
        ).abs()
        spectra.append(spectrum)
    floor = spectra[1].max() * 1e-3
    levels = [20 * torch.log10(spectrum.clamp(min=floor)) for spectrum in spectra]
    return float((levels[0] - levels[1]).square().mean(0).sqrt().mean())


def measure(
    dit: FlowDit, vocoder: BigVgan, utterances: Sequence[np.ndarray], chunk: int = 30, ode_steps: int = 29
) -> list[OverlapError]:
    """One row for each of :func:`modes`, over all ``utterances`` (speech codes), in chunks of ``chunk`` tokens."""
    counter = CountingVocoder(vocoder)
    detokenizer = StreamingDetokenizer(dit, counter)
    chunking = {"first_chunk": max(13, chunk), "chunk": chunk, "ode_steps": ode_steps}

    def run(options: SpeechOptions):
        counter.frames = 0
        return [speak(detokenizer, codes, options, seed) for seed, codes in enumerate(utterances)], counter.frames

    truth, frames = run(SpeechOptions(overlap="exact", **chunking))
    exact = [wav for wav, _, _ in truth]
    rows = [compare(exact, truth, frames, "exact")]
    for name, options in modes(**chunking):
        spoken, frames = run(options)
        rows.append(compare(exact, spoken, frames, name))
    return rows


def speech_codes(model: Path, recordings: Sequence[Path]) -> list[np.ndarray]:
    """Speech codes of recordings, by the model's own tokenizer."""
    config = load_model_config(model)
    tokenizer = SpeechTokenizer(load_speech_tokenizer(config), config.speech_tokenizer)
    sounds = [torch.from_numpy(load_audio(path)) for path in recordings]
    with torch.no_grad():
        return [tokenizer([sound], padded_widths([len(sound)]))[0].numpy() for sound in sounds]


def main() -> None:
    """Print the tables, and optionally write them as json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "examples" / "demo_model")
    parser.add_argument("--audio", type=Path, nargs="+", help="recordings; default: the example questions")
    parser.add_argument("--chunks", type=int, nargs="+", default=[30, 10], help="chunk sizes in tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    recordings = args.audio or sorted((REPOSITORY / "examples" / "questions").glob("*.wav"))
    config = load_model_config(args.model)
    dit = FlowDit(config.flow, load_flow(config, torch.float32))
    vocoder = BigVgan(config.vocoder, load_vocoder(config, torch.float32))
    utterances = [np.concatenate(speech_codes(args.model, recordings))]
    tables = {chunk: measure(dit, vocoder, utterances, chunk) for chunk in args.chunks}
    for chunk, rows in tables.items():
        print(f"\nchunks of {chunk} tokens, {sum(map(len, utterances))} tokens")
        print(f"{'mode':22} {'all dB':>8} {'joints dB':>10} {'spectral dB':>12} {'vocoded':>8} {'first':>6}")
        for row in rows:
            print(
                f"{row.mode:22} {row.difference_db:8.1f} {row.joint_difference_db:10.1f} "
                f"{row.log_spectral_distance_db:12.2f} {row.vocoded_per_heard:8.2f} {row.tokens_to_first_sample:6.0f}"
            )
    if args.json:
        args.json.write_text(
            json.dumps({str(c): [asdict(row) for row in rows] for c, rows in tables.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
