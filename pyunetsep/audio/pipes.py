"""Audio through pipes, as it comes: no end to seek to, no way back, and often no length."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, cast

import numpy as np

from ..errors import AudioFileError, AudioFormatError, PyunetsepError
from .encoding import Encoder
from .files import PositionedFile, file_error
from .formats import SAMPLE_BYTES, AudioFormat, check_format
from .headers import SoundExtent, closed_header, sound_extent
from .libsndfile import soundfile
from .reading import AudioReader, LibsndfileDecoder, check_excerpt, cut_off

_HEAD_BYTES = 1 << 16  # that may come before the sound
_ENDLESS = 1 << 50  # bytes; what a header without a length is taken to promise
_COPIED_AT_ONCE = 1 << 20
_WHOLE_SAMPLES = (1, 3, 6, 7, 0xFFFE)  # integers, floats, A-law, mu-law; what comes in blocks has its length elsewhere
_READ_AS_IT_COMES = re.compile(rb"(RIFF|RF64|BW64).{4}WAVE", re.DOTALL)  # and of any length
_WRITABLE = ("WAV", "WAVEX", "FLAC", "MP3", "OGG")
# Bytes that are held back until nothing in them is written again: libsndfile writes a header, and then again.
_HELD_BYTES = 1 << 10


class PipeReader:
    """Reads a WAV while it comes through a pipe.

    Args:
        file: the pipe; `name` is for messages.
        start_s, duration_s: of the excerpt, as for `AudioReader`.
    Attributes:
        path: the name.
        sample_rate_hz, channels, format, dtype: as of `AudioReader`.
        samples: of the excerpt; None if the header does not say, as when it was itself written to a pipe.
    """

    def __init__(self, file: ForwardFile, name: str, *, start_s: float = 0.0, duration_s: float | None = None) -> None:
        self.path = name
        self._file = file
        try:
            self._decoder = LibsndfileDecoder(cast(BinaryIO, file), name)
        except soundfile.LibsndfileError as error:
            raise file_error(name, f"not an audio file that libsndfile knows ({error.error_string})") from None
        except OSError as error:
            raise error if isinstance(error, AudioFileError) else file_error(name, error) from error
        file.start()
        self.sample_rate_hz, self.channels = self._decoder.sample_rate_hz, self._decoder.channels
        self.format, self.dtype = AudioFormat("WAV", self._decoder.format.subtype), self._decoder.dtype
        self._start = round(start_s * self.sample_rate_hz)
        self._end = self._decoder.samples
        if self._end is not None and start_s > 0 and self._start >= self._end:
            raise self._too_late(self._end)
        if duration_s is not None:
            end = self._start + round(duration_s * self.sample_rate_hz)
            self._end = end if self._end is None else min(end, self._end)
        self.samples = None if self._decoder.samples is None or self._end is None else self._end - self._start

    def blocks(self, samples: int) -> Iterator[np.ndarray]:
        """Waves [channels, samples], the last one of fewer, until the end.

        Raises:
            AudioFileError: the rest is damaged. TruncatedAudioError: it is not there. ValueError: the excerpt starts
            beyond the end.
        """
        position = 0
        while position < self._start:
            count = self._decoder.read(min(samples, self._start - position)).shape[1]
            position += count
            if not count:
                raise self._too_late(position)
        while self._end is None or position < self._end:
            wanted = samples if self._end is None else min(samples, self._end - position)
            wave = self._decoder.read(wanted)
            position += wave.shape[1]
            if wave.shape[1] < wanted and self.samples is not None:
                raise cut_off(self.path, f"{self._decoder.samples} samples", str(position))
            if wave.shape[1]:
                yield wave
            if wave.shape[1] < wanted:
                break

    def drain(self) -> None:
        """Takes what follows the sound, but for an excerpt's, so that its writer does not meet a closed pipe."""
        if self._end == self._decoder.samples:
            self._file.drain()

    def close(self) -> None:
        """Close the decoder; the pipe is the caller's."""
        self._decoder.close()

    def _too_late(self, end: int) -> ValueError:
        start_s, end_s = self._start / self.sample_rate_hz, end / self.sample_rate_hz
        return ValueError(f"start_s: got {start_s:g}, but {self.path} ends at {end_s:g} s")


class ForwardFile(PositionedFile):
    """A pipe as a file that libsndfile can open: `head` first, then the pipe, to an end that is only pretended.

    What is read before `start` is kept, for whoever looks at the beginning more than once.
    """

    def __init__(self, head: bytes, stream: BinaryIO, size: int) -> None:
        self._head, self._stream, self._size = head, stream, size
        self._started = False
        self._taken = len(head)  # where the pipe is; libsndfile may be elsewhere

    def readable(self) -> bool:
        return True

    def size(self) -> int:
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, unless the pipe ends: libsndfile drops what is less than a sample."""
        view = memoryview(buffer)
        part = self._head[self._position : self._position + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        count = len(part)
        # elsewhere libsndfile looks for what may follow the sound: nothing that counts
        while count < len(view) and self._position == self._taken:
            more = cast(io.RawIOBase, self._stream).readinto(view[count:])
            if more is None:
                raise BlockingIOError(errno.EAGAIN, "the pipe does not wait for more")
            if not more:
                break
            if not self._started:
                self._head += view[count : count + more]
            count += more
            self._position += more
            self._taken += more
        return count

    def start(self) -> None:
        """From now on there is no way back to what has not been read."""
        self._started = True

    def drain(self) -> None:
        """Takes what follows the sound, so that whoever writes is not stopped by a closed pipe."""
        while self._stream.read(_COPIED_AT_ONCE):
            pass


@contextmanager
def open_pipe(
    stream: BinaryIO, name: str, *, start_s: float = 0.0, duration_s: float | None = None, whole: bool = False
) -> Iterator[PipeReader | AudioReader]:
    """Opens audio that comes through a pipe.

    A WAV is read as it comes. What is of another kind, or needed `whole`, is copied to a temporary file first, in
    constant memory.

    Args:
        stream: binary, such as `sys.stdin.buffer`.
        name: for messages.
    Raises:
        AudioFileError: it is not audio, or the copy could not be written. ValueError: a time is negative or NaN, or the
        excerpt starts beyond the end.
    """
    check_excerpt(start_s, duration_s)
    head = b"" if whole else _head(stream)
    if (file := _forward_file(head, stream)) is None:
        with (
            spooled(stream, head) as path,
            _named(path, name),
            AudioReader(path, start_s=start_s, duration_s=duration_s) as song,
        ):
            yield song
    else:
        with closing(PipeReader(file, name, start_s=start_s, duration_s=duration_s)) as reader:
            yield reader


@contextmanager
def _named(path: str, name: str) -> Iterator[None]:
    """Errors that leave the context call a temporary file what the user knows it as."""
    try:
        yield
    except (PyunetsepError, ValueError) as error:
        if path not in str(error):
            raise
        raise type(error)(str(error).replace(path, name)) from None


def _head(stream: BinaryIO) -> bytes:
    """Enough of a WAV to know where its sound begins, and that there is some; of others, what it took to see that."""
    head = stream.read(12)
    while len(head) < _HEAD_BYTES and _READ_AS_IT_COMES.match(head):
        extent = _extent(head)
        if (extent is not None and extent.available) or not (more := stream.read(64)):
            break
        head += more
    return head


def _extent(head: bytes) -> SoundExtent | None:
    """Where the sound of a WAV begins, if it says so by now; None for other files."""
    return sound_extent(io.BytesIO(head)) if _READ_AS_IT_COMES.match(head) else None


def _forward_file(head: bytes, stream: BinaryIO) -> ForwardFile | None:
    """The pipe as a file, if `head` says where its sound begins."""
    extent = _extent(head)
    if extent is None or _format_tag(head) not in _WHOLE_SAMPLES:
        return None
    size = _ENDLESS if extent.promised is None else extent.promised
    closed = closed_header(io.BytesIO(head), dataclasses.replace(extent, available=size))
    return ForwardFile(closed + head[extent.start :], stream, len(closed) + size) if closed else None


def _format_tag(head: bytes) -> int | None:
    """What a WAV says that its samples are."""
    found = re.search(rb"fmt .{4}(..)", head, re.DOTALL)
    return struct.unpack("<H", found[1])[0] if found else None


@contextmanager
def spooled(stream: BinaryIO, head: bytes = b"") -> Iterator[str]:
    """Copy a pipe into a temporary file, in constant memory.

    Args:
        stream: binary, such as `sys.stdin.buffer`.
        head: what was read of it already.
    Yields:
        The path of the copy, which is named "stdin" and goes when the context ends.
    Raises:
        AudioFileError: the copy could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="pyunetsep-") as folder:
        path = os.path.join(folder, "stdin")
        try:
            with open(path, "wb") as copy:
                copy.write(head)
                shutil.copyfileobj(stream, copy, _COPIED_AT_ONCE)
        except OSError as error:
            raise file_error(f"standard input: copying it to {folder}", error) from error
        yield path


class PipeWriter:
    """Writes audio into a pipe, as it is made.

    A WAV announces `samples`, or where that is None that it goes on to the end, in the way FFmpeg does.

    Args:
        stream: binary, such as `sys.stdout.buffer`; it stays open.
        name: of the pipe, for messages.
        sample_rate_hz, channels: of the wave.
        format: from `output_format`.
        samples: of the whole wave, if that is known.
    Attributes:
        peak, clipped_samples: see `Encoder`.
    Raises:
        AudioFormatError: `format` cannot be written without going back, or not hold this. AudioFileError,
        BrokenPipeError: as all methods.
    """

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        *,
        sample_rate_hz: int,
        channels: int,
        format: AudioFormat,
        samples: int | None = None,
    ) -> None:
        check_format(format, sample_rate_hz, channels)
        if format.container not in _WRITABLE:
            kinds = ", ".join(kind.lower() for kind in _WRITABLE)
            raise AudioFormatError(f"{format} cannot be written to a pipe; {kinds} can")
        sound_bytes = None
        if samples is not None and format.subtype in SAMPLE_BYTES:
            sound_bytes = samples * channels * SAMPLE_BYTES[format.subtype]
        self._file = _UnrewoundFile(stream, sound_bytes)
        self._encoder = Encoder(
            cast(BinaryIO, self._file), name, sample_rate_hz=sample_rate_hz, channels=channels, format=format
        )

    @property
    def peak(self) -> float:
        """The largest absolute value so far."""
        return self._encoder.peak

    @property
    def clipped_samples(self) -> int:
        """How many were more than one step of the sample type beyond full scale."""
        return self._encoder.clipped_samples

    def write(self, wave: np.ndarray) -> None:
        """Append a wave [channels, samples], float32 or float64; what is encoded of it is on its way at once."""
        self._encoder.write(wave)
        self._file.flush()

    def finish(self) -> None:
        """Write what is left; nothing can be written after it."""
        self._encoder.close()
        self._file.release()
        self._file.flush()

    def close(self) -> None:
        """End without another error, after one; further calls do nothing."""
        self._encoder.abandon()


class _UnrewoundFile(PositionedFile):
    """A pipe as a file in which libsndfile can go back: what it writes there again is dropped.

    That is what its encoders know at the end alone: lengths and peaks. They can be read as well without.
    """

    def __init__(self, stream: BinaryIO, sound_bytes: int | None) -> None:
        """`sound_bytes` that a WAV shall announce; None: all up to the end."""
        self._stream, self._sound_bytes = stream, sound_bytes
        self._held: bytearray | None = bytearray()
        self._end = 0

    def writable(self) -> bool:
        return True

    def size(self) -> int:
        return self._end

    def write(self, data: Any) -> int:
        start, self._position = self._position, self._position + len(data)
        if self._held is not None:
            self._held[start : self._position] = data
            if len(self._held) >= _HELD_BYTES:
                self.release()
        else:
            self._send(data[max(0, self._end - start) :])
        self._end = max(self._end, self._position)
        return len(data)

    def release(self) -> None:
        """Sends off what was held back, its length filled in; from now on nothing is."""
        held, self._held = self._held, None
        if held is not None:
            self._send(_announced(bytes(held), self._sound_bytes))

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if not (count := self._stream.write(rest)):  # which may take less than all
                raise BlockingIOError(errno.EAGAIN, "the pipe takes no more")
            rest = rest[count:]

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()


def _announced(head: bytes, sound_bytes: int | None) -> bytes:
    """The beginning of a file; the header of a WAV with the length of a sound of so many bytes. None: unknown."""
    extent = _extent(head)
    if extent is None:
        return head
    announced, unknown = bytearray(head), 0xFFFFFFFF
    for at, size in ((4, extent.start - 8), (extent.size_at, 0)):
        struct.pack_into("<I", announced, at, unknown if sound_bytes is None else min(size + sound_bytes, unknown))
    return bytes(announced)
