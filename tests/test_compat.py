"""Scripts written for the official package run unmodified, and nothing of it stays behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import antiphon
from antiphon import compat

SCRIPT = """
import os, sys, argparse
from kimia_infer.api.kimia import KimiAudio
parser = argparse.ArgumentParser()
parser.add_argument("--model_path", default="none")
args = parser.parse_args()
model = KimiAudio(model_path=args.model_path, load_detokenizer=True)
sampling = {"audio_temperature": 0.8, "audio_top_k": 10, "text_temperature": 0.0, "text_top_k": 5,
            "audio_repetition_penalty": 1.0, "audio_repetition_window_size": 64,
            "text_repetition_penalty": 1.0, "text_repetition_window_size": 16}
wav, text = model.generate([{"role": "user", "message_type": "audio", "content": "q.wav"}], **sampling, output_type="both")
sound = wav.detach().cpu().view(-1).numpy()
name, argv = __name__, sys.argv
"""


class Recorder:
    seeds: ClassVar[list[int]] = []

    def __init__(self, model_path, load_detokenizer=True):
        self.model_path = model_path

    def generate(self, chats, output_type="text", *, seed=None, **sampling):
        self.seeds.append(seed)
        assert len(sampling) == 8
        return torch.zeros(1, 480), "hello"


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setattr(antiphon, "KimiAudio", Recorder, raising=False)
    monkeypatch.setattr(Recorder, "seeds", [])
    path = tmp_path / "infer.py"
    path.write_text(SCRIPT)
    return path


def test_official_script_runs_with_its_arguments(script):
    values = compat.run_script(str(script), ["--model_path", "m"])
    assert values["model"].model_path == "m" and values["text"] == "hello"
    assert values["sound"].shape == (480,) and values["sound"].dtype == np.float32
    assert values["name"] == "__main__" and values["argv"] == [str(script), "--model_path", "m"]


def test_nothing_stays_behind(script):
    finders, search, argv = list(sys.meta_path), list(sys.path), list(sys.argv)
    compat.run_script(str(script))
    assert (sys.meta_path, sys.path, sys.argv) == (finders, search, argv)
    assert not [name for name in sys.modules if name.startswith("kimia_infer")]
    with pytest.raises(ImportError):
        __import__("kimia_infer.api.kimia")


def test_global_seed_decides_the_draws(script):
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        compat.run_script(str(script))
    first, again, other = Recorder.seeds
    assert first == again != other


def test_the_rest_of_the_official_package_is_refused_by_name(tmp_path, capsys):
    path = tmp_path / "s.py"
    path.write_text("from kimia_infer.models.detokenizer import get_audio_detokenizer\n")
    with pytest.raises(ImportError, match="antiphon.compat provides only"):
        compat.run_script(str(path))


def test_wrong_calls(tmp_path, capsys):
    assert compat.main([]) == 2
    assert compat.main([str(tmp_path / "none.py")]) == 2
    assert "no such script" in capsys.readouterr().err


OFFICIAL = """
from kimia_infer.api.kimia import KimiAudio
import os
import soundfile as sf
import argparse
import torch

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_path", type=str, default="moonshotai/Kimi-Audio-7B-Instruct")
    args = parser.parse_args()

    model = KimiAudio(model_path=args.model_path, load_detokenizer=True)

    sampling_params = {
        "audio_temperature": 0.8,
        "audio_top_k": 10,
        "text_temperature": 0.0,
        "text_top_k": 5,
        "audio_repetition_penalty": 1.0,
        "audio_repetition_window_size": 64,
        "text_repetition_penalty": 1.0,
        "text_repetition_window_size": 16,
    }

    messages = [
        {"role": "user", "message_type": "text", "content": "Please transcribe the audio."},
        {"role": "user", "message_type": "audio", "content": "asr_example.wav"},
    ]
    wav, text = model.generate(messages, **sampling_params, output_type="text")
    print(">>> output text: ", text)

    output_dir = "output"
    os.makedirs(output_dir, exist_ok=True)
    torch.manual_seed(0)
    messages = [{"role": "user", "message_type": "audio", "content": "qa_example.wav"}]
    wav, text = model.generate(messages, **sampling_params, output_type="both")
    sf.write(os.path.join(output_dir, "output.wav"), wav.detach().cpu().view(-1).numpy(), 24000)
    print(">>> output text: ", text)

    messages = [
        {"role": "user", "message_type": "audio", "content": "qa_example.wav"},
        {"role": "assistant", "message_type": "audio-text", "content": ["output/output.wav", text]},
        {"role": "user", "message_type": "audio", "content": "asr_example.wav"},
    ]
    wav, text = model.generate(messages, **sampling_params, output_type="both")
    sf.write(os.path.join(output_dir, "second.wav"), wav.detach().cpu().view(-1).numpy(), 24000)
    print(">>> output text: ", text)
"""


def test_the_official_example_on_the_demo_model(tmp_path, monkeypatch, capsys):
    """The official ``infer.py`` with our recordings' names: transcription, spoken answer, second turn."""
    soundfile = pytest.importorskip("soundfile")
    examples = Path(__file__).resolve().parents[1] / "examples"
    for name, source in (("asr_example.wav", "p045.wav"), ("qa_example.wav", "p029.wav")):
        (tmp_path / name).symlink_to(examples / "questions" / source)
    (tmp_path / "infer.py").write_text(OFFICIAL)
    monkeypatch.chdir(tmp_path)
    assert compat.main(["infer.py", "--model_path", str(examples / "demo_model")]) == 0
    texts = [line.removeprefix(">>> output text: ").strip() for line in capsys.readouterr().out.splitlines()]
    assert texts == ["what color is the sky", "one plus six is seven", "the sky is blue"]
    for name in ("output.wav", "second.wav"):
        samples, rate = soundfile.read(tmp_path / "output" / name)
        assert rate == 24_000 and len(samples) % 1920 == 0 and 0.02 < samples.std() < 0.5
