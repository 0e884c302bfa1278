"""What stands between libsndfile and a file: error keeping, spliced headers and a queue of samples."""

from __future__ import annotations

import errno
import functools
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
    """A file that libsndfile reads or writes by callbacks of its SF_VIRTUAL_IO, of which no error is lost.

    cffi prints and drops an exception that leaves a callback, and libsndfile takes the 0 that it returns instead
    for the end of the file. So cffi's `onerror` keeps the first one here, and `check` raises it. That a callback
    catches its own would not do: an interrupt also comes before its first line.
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

    def virtual_io(self) -> Any:
        """libsndfile's SF_VIRTUAL_IO of the five functions below."""
        ffi = soundfile._ffi
        self._callbacks = {  # kept: libsndfile holds nothing but their addresses
            name: ffi.callback(f"sf_vio_{name}", getattr(self, name), onerror=self._keep)
            for name in ("get_filelen", "seek", "read", "write", "tell")
        }
        return ffi.new("SF_VIRTUAL_IO*", self._callbacks)

    def get_filelen(self, _: object) -> int:
        position = self._file.tell()
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(position)
        return end

    def seek(self, offset: int, whence: int, _: object) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            return self._file.tell()  # before the start: a damaged header, on which libsndfile has its own opinion

    def read(self, data: Any, size: int, _: object) -> int:
        count = cast("io.RawIOBase", self._file).readinto(soundfile._ffi.buffer(data, size)) or 0
        self.reached_end |= count < size
        return count

    def write(self, data: Any, size: int, _: object) -> int:
        return self._file.write(soundfile._ffi.buffer(data, size)[:])

    def tell(self, _: object) -> int:
        return self._file.tell()

    def _keep(self, _: object, error: BaseException, __: object) -> None:
        self._error = self._error or error


class PositionedFile(io.RawIOBase):
    """What stands in for a file that has a position: `seek` moves that alone."""

    _position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self.size()
        self._position = offset
        return offset

    def size(self) -> int:
        """Where the end is."""
        raise NotImplementedError


class SplicedFile(PositionedFile):
    """`file` with its first `skip` bytes replaced by `head`, without a copy of the rest."""

    def __init__(self, file: BinaryIO, head: bytes, skip: int) -> None:
        self._file, self._head, self._skip = file, head, skip

    def readable(self) -> bool:
        return True

    def size(self) -> int:
        return self._file.seek(0, os.SEEK_END) - self._skip + len(self._head)

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


def sequential_sound_file(file: GuardedFile, mode: str = "r", **options: Any) -> soundfile.SoundFile:
    """A `SoundFile` that reads and writes straight on, and keeps the errors of its file in `file`."""
    return _sequential_sound_file_class()(file, mode, **options)


@functools.cache
def _sequential_sound_file_class() -> type[soundfile.SoundFile]:
    class SequentialSoundFile(soundfile.SoundFile):
        def seekable(self) -> bool:
            """Not for soundfile, which would seek after every read and write to the place where libsndfile is anyway.

            That is inexact near the end of Ogg files (small reads of Opus gave other samples) and fails in FLAC
            files of unknown length.
            """
            return False

        def _init_virtual_io(self, file: GuardedFile) -> Any:
            return file.virtual_io()

    return SequentialSoundFile


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
