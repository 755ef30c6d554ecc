"""What is not a recording is refused with a message that says what came and what was expected."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from antiphon.audio import load_audio
from antiphon.errors import AudioError


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"Hello, please transcribe this.\n" * 20, "it looks text|no audio stream"),
        ("请将音频内容转换为文字。".encode(), "it looks text"),
        (bytes(range(256)) * 64, "is not a readable recording|is damaged"),
        (b"\x00" * 4096, "is not a readable recording|is damaged"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "is not a readable recording|holds no samples"),
        (b"fLaC" + b"\x00" * 200, "is not a readable recording|is damaged|holds no samples"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_files_that_are_not_sound(tmp_path, content, message, as_file):
    path = tmp_path / "sound.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        load_audio(path if as_file else content)
    assert not as_file or str(path) in str(caught.value)


def test_random_bytes_never_pass_as_sound():
    rng = np.random.default_rng(0)
    for size in (1, 10, 100, 5000, 50000):
        with pytest.raises(AudioError):
            load_audio(rng.bytes(size))


def test_no_samples(wav):
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(wav(b""))
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio((np.zeros(0, np.float32), 16000))
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio((np.zeros((0, 2), np.float32), 16000))


@pytest.mark.parametrize(
    "container, codec, message",
    [
        ("flac", "flac", r"is damaged: \d+ of 320000 samples could be decoded"),
        ("mp3", "mp3", r"is damaged: decoding stopped after \d+\.\d\d s"),
        ("mp4", "aac", r"is damaged: decoding stopped after \d+\.\d\d s"),
    ],
)
def test_damage_in_the_middle_says_where(encode, tone, container, codec, message):
    data = bytearray(encode(np.tile(tone, 20)[None], 16000, container, codec))
    middle, size = len(data) // 2, len(data) // 20
    data[middle : middle + size] = np.random.default_rng(0).bytes(size)
    with pytest.raises(AudioError, match=message):
        load_audio(bytes(data))


def test_half_a_file_is_damaged(encode, tone):
    data = encode(np.tile(tone, 20)[None], 16000, "flac", "flac")
    with pytest.raises(AudioError, match="is damaged"):
        load_audio(data[: len(data) // 2])


def test_a_picture_has_no_audio_stream(tmp_path):
    import matplotlib.image

    path = tmp_path / "picture.png"
    matplotlib.image.imsave(path, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(AudioError, match=r"has no audio stream \(found: video\)"):
        load_audio(path)


@pytest.mark.parametrize("text", ["What is the capital of France?", "nothing", "two\nlines.wav", "x" * 5000, "a\0b"])
def test_text_given_as_audio(text):
    with pytest.raises(AudioError, match="looks like text"):
        load_audio(text)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(AudioError, match=r"^audio file '\S*missing\.wav' does not exist; expected the path of a recording$"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="is a folder"):
        load_audio(str(tmp_path))


def test_a_url_is_not_opened():
    with pytest.raises(AudioError, match="does not exist"):
        load_audio("https://example.com/sound.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(value, wav):
    samples = np.zeros(10, np.float32)
    samples[3] = value
    with pytest.raises(AudioError, match="sample 3 is .*; expected finite"):
        load_audio((samples, 16000))
    with pytest.raises(AudioError, match="sample 3 is"):
        load_audio(wav(samples.tobytes(), bits=32, tag=3))


@pytest.mark.parametrize("rate", [0, -16000, 999, 10**7, "16000", None, 16000.5, float("nan")])
def test_impossible_rates(rate):
    with pytest.raises(AudioError, match="sampling rate"):
        load_audio((np.zeros(10, np.float32), rate))


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 2, 2)), np.zeros(4, bool), np.zeros(4, complex), np.array(["a"]), [[1.0], [1.0, 2.0]], np.float32(1)],
)
def test_arrays_that_are_not_sound(array):
    with pytest.raises(AudioError, match="audio array"):
        load_audio((array, 16000))


def test_too_many_channels():
    with pytest.raises(AudioError, match="more than 64 channels"):
        load_audio((np.zeros((100, 100)), 16000))


@pytest.mark.parametrize(
    "source", [None, 7, 1.5, object(), np.zeros(10), [0.0, 0.1], (np.zeros(3),), {"array": np.zeros(3)}]
)
def test_other_things(source):
    with pytest.raises(AudioError, match="expected"):
        load_audio(source)


def test_text_mode_files():
    with pytest.raises(AudioError, match="binary mode"):
        load_audio(io.StringIO("RIFF"))


def test_scripts_cannot_read_other_files(tmp_path, wav, tone, monkeypatch):
    (tmp_path / "secret.wav").write_bytes(wav(tone.tobytes()))
    monkeypatch.chdir(tmp_path)
    script = b"ffconcat version 1.0\nfile secret.wav\n"
    with av.open(io.BytesIO(script)) as container:
        assert container.streams.audio, "without our options FFmpeg follows the script"
    with pytest.raises(AudioError, match="is not a readable recording"):
        load_audio(script)
