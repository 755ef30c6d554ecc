"""Two recordings through the demo checkpoint: one transcribed, one answered in speech, with a picture and timings.

    python examples/demo.py [--out demo_out] [--model examples/demo_model] [--question examples/questions/p047.wav]

Writes ``answer.wav`` (24 kHz) and ``answer.png`` (waveform and spectrogram). Needs no GPU and no network.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from antiphon import KimiAudio
from antiphon.commands.sound import WavWriter
from antiphon.deltas import AudioDelta, TextDelta

HERE = Path(__file__).resolve().parent
INSTRUCTION = {"role": "user", "message_type": "text", "content": "Please transcribe the audio."}


@dataclass
class Timing:
    """One line of the table, in seconds; ``first`` is the first sound, None where nothing was spoken."""

    what: str
    seconds_of_sound: float | None
    first: float | None
    total: float


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = KimiAudio(str(arguments.model))
    timings = [Timing("load the model", None, None, time.perf_counter() - start)]
    timings.append(transcribe(model, arguments.recording))
    speech, timing = answer(model, arguments.question, arguments.out / "answer.wav")
    timings.append(timing)
    start = time.perf_counter()
    picture(speech, arguments.question.name, arguments.out / "answer.png")
    timings.append(Timing("draw the picture", None, None, time.perf_counter() - start))
    print_table(timings)
    print(f"\nlisten to {arguments.out / 'answer.wav'}, look at {arguments.out / 'answer.png'}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "demo_model")
    parser.add_argument("--recording", type=Path, default=HERE / "questions" / "p002.wav", help="to be transcribed")
    parser.add_argument("--question", type=Path, default=HERE / "questions" / "p047.wav", help="to be answered")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    return parser.parse_args()


def transcribe(model: KimiAudio, recording: Path) -> Timing:
    """Speech to text."""
    start = time.perf_counter()
    _, text = model.generate([INSTRUCTION, spoken(recording)], output_type="text")
    print(f"{recording.name} says:       {text}")
    return Timing(f"transcribe {recording.name}", None, None, time.perf_counter() - start)


def answer(model: KimiAudio, question: Path, out: Path) -> tuple[np.ndarray, Timing]:
    """Speech to speech; text is printed and sound written as they come. Returns the speech, float32 [samples]."""
    start, first, chunks, wav = time.perf_counter(), None, [], WavWriter(out)
    print(f"{question.name} is answered: ", end="", flush=True)
    for delta in model.generate_stream([spoken(question)], output_type="both", seed=0):
        if isinstance(delta, TextDelta):
            print(delta.text, end="", flush=True)
        elif isinstance(delta, AudioDelta):
            first = first or time.perf_counter() - start
            chunks.append(np.asarray(delta.pcm, np.float32))
            wav.write(chunks[-1])
    wav.close()
    print()
    return np.concatenate(chunks), Timing(f"answer {question.name}", wav.seconds, first, time.perf_counter() - start)


def spoken(path: Path) -> dict:
    """A recording as a message of the user."""
    return {"role": "user", "message_type": "audio", "content": str(path)}


def picture(speech: np.ndarray, name: str, path: Path, rate: int = 24_000) -> None:
    """Waveform above spectrogram."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
    top.plot(np.arange(len(speech)) / rate, speech, linewidth=0.4)
    top.set(title=f"answer to {name}", ylabel="amplitude", ylim=(-1.1, 1.1))
    bottom.specgram(speech + 1e-6, NFFT=1024, noverlap=768, Fs=rate, vmin=-130, vmax=-30, cmap="magma")
    bottom.set(xlabel="seconds", ylabel="Hz", ylim=(0, 8000))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_table(timings: list[Timing]) -> None:
    """Times; the real-time factor is computing time per second of speech that came out."""
    print(f"\n{'':24s}{'speech':>9s}{'first sound':>13s}{'total':>9s}{'RTF':>7s}")
    for line in timings:
        cells = [_seconds(line.seconds_of_sound), _seconds(line.first), _seconds(line.total)]
        rtf = f"{line.total / line.seconds_of_sound:.2f}" if line.seconds_of_sound else ""
        print(f"{line.what:24s}{cells[0]:>9s}{cells[1]:>13s}{cells[2]:>9s}{rtf:>7s}")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


if __name__ == "__main__":
    main()
