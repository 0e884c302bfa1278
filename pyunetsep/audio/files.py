"""What stands between libsndfile and a file: error keeping, spliced headers and a queue of samples."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioFileError
from .libsndfile import soundfile

if TYPE_CHECKING:
    from collections.abc import Sequence

Wave = NDArray[np.floating]  # [channels, samples]


def file_error(path: str, reason: Exception | str) -> AudioFileError:
    """An `AudioFileError` "path: reason", with the `errno` of an `OSError`."""
    text = reason.strerror.lower() if isinstance(reason, OSError) and reason.strerror else str(reason)
    error = AudioFileError(f"{path}: {text}")
    if isinstance(reason, OSError):
        error.errno = reason.errno
    return error


class GuardedFile:
    """The file object that libsndfile's callbacks see.

    cffi prints and drops an exception that leaves a callback, and libsndfile takes the 0 that it returns instead
    for the end of the file. So nothing is raised here: the first exception is kept, and `check` raises it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: BaseException | None = None
        self.reached_end = False

    def check(self) -> None:
        """Raise what went wrong in a callback since the last call."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def readinto(self, buffer: Any) -> int:
        try:
            count = cast("io.RawIOBase", self._file).readinto(buffer) or 0
        except BaseException as error:
            return self._keep(error)
        self.reached_end |= count < len(buffer)
        return count

    def read(self, size: int = -1) -> bytes:  # soundfile asks whether it is there, and calls readinto
        raise NotImplementedError

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            return self._keep(error)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except ValueError:  # before the start: a damaged header, on which libsndfile has its own opinion
            return self.tell()
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                return self.tell()
            return self._keep(error)

    def tell(self) -> int:
        try:
            return self._file.tell()
        except BaseException as error:
            return self._keep(error)

    def _keep(self, error: BaseException) -> int:
        self._error = self._error or error
        return 0


class SplicedFile(io.RawIOBase):
    """`file` with its first `skip` bytes replaced by `head`, without a copy of the rest."""

    def __init__(self, file: BinaryIO, head: bytes, skip: int) -> None:
        self._file, self._head, self._skip = file, head, skip
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._file.seek(0, os.SEEK_END) - self._skip + len(self._head)
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        from_head = self._head[self._position : self._position + len(view)]
        view[: len(from_head)] = from_head
        count = len(from_head)
        if count < len(view):
            self._file.seek(self._position + count - len(self._head) + self._skip)
            rest = self._file.read(len(view) - count)
            view[count : count + len(rest)] = rest
            count += len(rest)
        self._position += count
        return count


def sequential_sound_file(*arguments: Any, **options: Any) -> soundfile.SoundFile:
    """A `SoundFile` that reads and writes straight on.

    soundfile seeks after every read and write to the place where libsndfile is anyway. That seek is inexact near
    the end of Ogg files (small reads of Opus gave other samples) and fails in FLAC files of unknown length.
    """
    file = soundfile.SoundFile(*arguments, **options)
    file.seekable = lambda: False
    return file


class SampleQueue:
    """First in, first out: waves of any length in, waves of the asked length out."""

    def __init__(self, channels: int, dtype: Any = np.float32) -> None:
        self._waves: list[np.ndarray] = [np.empty((channels, 0), dtype)]
        self.samples = 0

    def push(self, wave: np.ndarray) -> None:
        self._waves.append(wave)
        self.samples += wave.shape[1]

    def pull(self, samples: int) -> np.ndarray:
        """The oldest `samples` samples, or all there are: [channels, <= samples]."""
        waves, taken = [self._waves[0][:, :0]], 0
        while self._waves and taken < samples:
            wave = self._waves.pop(0)
            waves.append(wave[:, : samples - taken])
            taken += waves[-1].shape[1]
            if waves[-1].shape[1] < wave.shape[1]:
                self._waves.insert(0, wave[:, waves[-1].shape[1] :])
        if not self._waves:
            self._waves = [waves[-1][:, :0]]
        self.samples -= taken
        return _joined(waves)


def _joined(waves: Sequence[np.ndarray]) -> np.ndarray:
    waves = [wave for wave in waves if wave.shape[1]] or waves[:1]
    return waves[0] if len(waves) == 1 else np.concatenate(waves, axis=1)
