"""Sound files that commands write: 16-bit PCM WAV, complete after every chunk."""

from __future__ import annotations

import contextlib
import wave
from pathlib import Path

import numpy as np

from ..config import SAMPLE_RATE_OUT
from ..errors import InputError


class WavWriter:
    """A mono 24 kHz WAV that grows while speech is generated; the header is right after every :meth:`write`.

    The file appears with the first call, so that a failed request leaves nothing behind and an existing file alone.
    """

    def __init__(self, path: Path, sample_rate: int = SAMPLE_RATE_OUT):
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written; its folder must exist and it must not be a folder itself")
        self.path, self.sample_rate = path, sample_rate
        self.num_samples = 0
        self._file: wave.Wave_write | None = None

    @property
    def seconds(self) -> float:
        """Length of what has been written."""
        return self.num_samples / self.sample_rate

    def write(self, pcm: np.ndarray) -> None:
        """Append float samples [n]; values outside [-1, 1] are clipped. InputError when the file cannot take them."""
        try:
            if self._file is None:
                self._file = self._open()
            self._file.writeframes(pcm16(pcm))
            self._file._file.flush()
        except OSError as error:
            self._abandon()
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
        self.num_samples += len(pcm)

    def close(self) -> None:
        """Finish the file; without any sample it is not created."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> wave.Wave_write:
        file = wave.open(str(self.path), "wb")  # noqa: SIM115 - open as long as the writer
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(self.sample_rate)
        return file

    def _abandon(self) -> None:
        """Let go of a file that cannot be written; closing it would fail in the same way."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def pcm16(samples: np.ndarray) -> bytes:
    """Float samples as little-endian 16-bit PCM, clipped, full scale = 32767."""
    return np.rint(np.clip(np.asarray(samples, np.float32), -1, 1) * 32767).astype("<i2").tobytes()
