"""Wave -> the bytes of an audio file."""

from __future__ import annotations

import contextlib
from typing import BinaryIO

import numpy as np

from ..errors import AudioFileError, AudioFormatError, InvalidAudioError
from .files import GuardedFile, SampleQueue, file_error, sequential_sound_file
from .formats import COMPRESSION_LEVEL, PCM_BITS, UNBOUNDED_SUBTYPES, AudioFormat
from .libsndfile import soundfile

# The samples that Vorbis gets at once decide what it keeps, and very many at once overflow its stack.
_ENCODER_BLOCK = 4096


class Encoder:
    """Writes a wave to an open file, block by block.

    Integer types are rounded to the nearest value, half to even, and clipped at full scale; float and lossy types
    (MP3, Vorbis, Opus) take values beyond it.

    Args:
        file: where the bytes go; `close` leaves it open.
        name: of the file, for messages.
        container: the one to write, if not that of `format`.
    Attributes:
        samples: written so far.
        peak: the largest absolute value so far.
        clipped_samples: how many were more than one step of the sample type beyond full scale.
    Raises:
        AudioFileError: libsndfile or the file refuses; and so do the methods.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        *,
        sample_rate_hz: int,
        channels: int,
        format: AudioFormat,
        container: str | None = None,
    ) -> None:
        self.name, self.channels, self.format = name, channels, format
        self.samples = 0
        self.peak = 0.0
        self.clipped_samples = 0
        self._queue = SampleQueue(channels, np.float64)
        self._guard = GuardedFile(file)
        try:
            self._file = sequential_sound_file(
                self._guard,
                "w",
                samplerate=sample_rate_hz,
                channels=channels,
                subtype=format.subtype,
                format=container or format.container,
                compression_level=COMPRESSION_LEVEL.get(format.subtype),
            )
            self._guard.check()
        except BaseException as error:
            self.abandon()
            raise self.explained(error) from None

    def write(self, wave: np.ndarray) -> None:
        """Append a wave [channels, samples], float32 or float64.

        Raises:
            InvalidAudioError: wrong shape or dtype, or NaN or infinity where the sample type has none.
        """
        if wave.ndim != 2 or wave.shape[0] != self.channels or wave.dtype not in (np.float32, np.float64):
            raise InvalidAudioError(
                f"wave: got {wave.dtype} {wave.shape}, want float32 or float64 ({self.channels}, samples)"
            )
        if not wave.shape[1]:
            return
        self.peak = max(self.peak, float(np.abs(wave).max()))
        if self.format.subtype not in ("FLOAT", "DOUBLE") and not np.isfinite(wave).all():
            raise InvalidAudioError(f"{self.name}: {self.format.subtype} cannot hold NaN or infinity")
        self.samples += wave.shape[1]
        try:
            if self.format.subtype == "VORBIS":
                self._queue.push(wave.copy())
                while self._queue.samples >= _ENCODER_BLOCK:
                    self._encode(self._queue.pull(_ENCODER_BLOCK))
            else:
                self._encode(wave)
        except (OSError, soundfile.SoundFileError, AssertionError) as error:
            raise self.explained(error) from None

    def close(self) -> None:
        """Write what is left."""
        try:
            if self._queue.samples:
                self._encode(self._queue.pull(_ENCODER_BLOCK))
            self._file.close()
            self._guard.check()
        except BaseException as error:
            raise self.explained(error) from None

    def abandon(self) -> None:
        """End without another error, after one; further calls do nothing."""
        if hasattr(self, "_file"):  # not if libsndfile refused to open it
            with contextlib.suppress(soundfile.SoundFileError):
                self._file.close()

    def explained(self, error: BaseException) -> BaseException:
        """`error` as the user should see it: the disk's own reason first, with the file's name."""
        if isinstance(error, (AudioFileError, InvalidAudioError, AudioFormatError)):
            return error
        try:
            self._guard.check()
        except OSError as kept:
            error = kept
        except BaseException as kept:  # an interrupt in a callback
            return kept
        if isinstance(error, BrokenPipeError):  # whoever reads has had enough: no trouble with a file
            return error
        if isinstance(error, OSError):
            return file_error(self.name, error)
        if isinstance(error, (soundfile.SoundFileError, AssertionError)):
            return file_error(self.name, f"libsndfile could not write it ({str(error).strip() or 'short write'})")
        return error

    def _encode(self, wave: np.ndarray) -> None:
        values = np.ascontiguousarray(wave.T)
        if self.format.subtype not in UNBOUNDED_SUBTYPES:
            values = self._rounded(values)
        self._file.write(values)
        self._guard.check()

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        """The nearest integers, in the upper bits of int32, which libsndfile stores as they are."""
        bits = PCM_BITS.get(self.format.subtype, 16)
        scale = 2.0 ** (bits - 1)
        steps = np.rint(values.astype(np.float64 if bits > 24 else values.dtype) * values.dtype.type(scale))
        self.clipped_samples += int(np.count_nonzero(np.abs(steps) > scale))
        return np.clip(steps, -scale, scale - 1).astype(np.int32) << (32 - bits)
