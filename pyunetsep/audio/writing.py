"""Wave -> audio file, all or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import BinaryIO

import numpy as np

from ..errors import AudioFormatError, OutputExistsError
from .encoding import Encoder
from .files import file_error
from .formats import SAMPLE_BYTES, AudioFormat, check_format
from .libsndfile import soundfile
from .reading import AudioReader

# What 32-bit sizes hold, less room for the header. A WAV beyond it becomes RF64.
MAX_RIFF_BYTES = (1 << 32) - (1 << 16)
_WITHOUT_LIMIT = frozenset({"W64", "CAF", "FLAC", "OGG", "MP3", "RF64"})
_EXACT_SUBTYPES = frozenset(SAMPLE_BYTES) | {"VORBIS", "OPUS", "MPEG_LAYER_III"}
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES})


class AudioWriter:
    """Writes an audio file that appears under its name only by `commit`, when it is complete.

    Until then it has a temporary, hidden name in the same folder; leaving the context without `commit` removes it.
    What becomes of values beyond full scale, `Encoder` says.

    Args:
        path: of the file. Its input may have the same: that stays as it is until `commit`.
        sample_rate_hz, channels: of the wave.
        samples: of the whole wave.
        format: from `output_format`. A WAV of more than 4 GiB becomes RF64.
        overwrite: whether `commit` may replace an existing file.
    Raises:
        AudioFileError: the folder is not there or not writable, `path` is no regular file, ...
        AudioFormatError: `format` cannot hold this.
        OutputExistsError: `path` exists and `overwrite` is false.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sample_rate_hz: int,
        channels: int,
        samples: int,
        format: AudioFormat,
        overwrite: bool = False,
    ) -> None:
        check_format(format, sample_rate_hz, channels, samples)
        self.path, self.format = os.fspath(path), format
        self.sample_rate_hz, self.channels, self.samples = sample_rate_hz, channels, samples
        self._finished = False
        self._overwrite = overwrite
        self._temporary: str | None = None
        _check_target(self.path, overwrite)
        container = self._container()
        try:
            self._temporary, self._raw = _create_beside(self.path)
        except OSError as error:
            raise file_error(self.path, error) from None
        try:
            self._encoder = Encoder(
                self._raw,
                self.path,
                sample_rate_hz=sample_rate_hz,
                channels=channels,
                format=format,
                container=container,
            )
        except BaseException:
            self._discard()
            raise

    @property
    def peak(self) -> float:
        """The largest absolute value so far."""
        return self._encoder.peak

    @property
    def clipped_samples(self) -> int:
        """How many were more than one step of the sample type beyond full scale."""
        return self._encoder.clipped_samples

    def write(self, wave: np.ndarray) -> None:
        """Append a wave [channels, samples], float32 or float64.

        Raises:
            InvalidAudioError: wrong shape or dtype, or NaN or infinity where the sample type has none.
            AudioFileError: the disk is full, ...
        """
        if self._temporary is None or self._finished:
            raise ValueError("write to a closed AudioWriter")
        self._encoder.write(wave)

    def finish(self) -> None:
        """Complete the file and check it, still under its temporary name; nothing can be written after it.

        With several outputs, finish all before the first `commit`: a full disk then leaves none behind.

        Raises:
            AudioFileError: the disk is full, or libsndfile reads back something else than was written.
            ValueError: fewer or more samples were written than were announced.
        """
        if self._temporary is None:
            raise ValueError("finish of a closed AudioWriter")
        if self._finished:
            return
        written = self._encoder.samples
        try:
            if written != self.samples:
                raise ValueError(f"{self.path}: {self.samples} samples were announced, {written} were written")
            self._encoder.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._verify(self._temporary)
        except BaseException as error:
            self._discard()
            raise self._encoder.explained(error) from None
        self._finished = True

    def commit(self) -> None:
        """`finish`, unless done, and give the file its name.

        Raises:
            OutputExistsError: somebody else made `path` in the meantime.
            AudioFileError: it could not be renamed; and as `finish`.
        """
        self.finish()
        assert self._temporary is not None
        try:
            _publish(self._temporary, self.path, self._overwrite)
        except BaseException as error:
            self._discard()
            raise self._encoder.explained(error) from None
        self._temporary = None

    def close(self) -> None:
        """Remove what was written, unless `commit` was called."""
        if self._temporary is not None:
            self._discard()

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _container(self) -> str:
        """What libsndfile writes: RF64 for a WAV that is too long for 32 bits."""
        if self.format.container in _WITHOUT_LIMIT:
            return self.format.container
        if self.samples * self.channels * SAMPLE_BYTES.get(self.format.subtype, 1) <= MAX_RIFF_BYTES:
            return self.format.container
        if self.format.container not in ("WAV", "WAVEX") or not soundfile.check_format("RF64", self.format.subtype):
            raise AudioFormatError(
                f"{self.format} holds up to 4 GiB, too little for {self.samples} samples of {self.channels} channels; "
                "WAV, W64, CAF and FLAC hold more"
            )
        return "RF64"

    def _verify(self, temporary: str) -> None:
        """Read the header back: an encoder that lost samples must not pass."""
        with AudioReader(temporary) as reader:
            found = (reader.sample_rate_hz, reader.channels, reader.samples)
        written = (self.sample_rate_hz, self.channels, self._encoder.samples)
        # block codecs (ADPCM, GSM, ...) fill up their last block and have no place to say so
        padded = self.format.subtype not in _EXACT_SUBTYPES and found[:2] == written[:2] and found[2] >= written[2]
        if found != written and not padded:
            raise file_error(self.path, f"wrote {written}, reads back {found} (Hz, channels, samples)")

    def _discard(self) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is None:
            return
        if hasattr(self, "_encoder"):  # not if it could not begin
            self._encoder.abandon()
        with contextlib.suppress(OSError):
            self._raw.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _check_target(path: str, overwrite: bool) -> None:
    """Fail before hours of work, not after: the name is too long, taken, or that of a device or folder."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path) and not overwrite:
            raise OutputExistsError(f"{path}: exists already, as a link that leads nowhere") from None
        return
    except (OSError, ValueError) as error:
        raise file_error(path, error) from None
    if not stat.S_ISREG(mode):
        raise file_error(path, "is a folder" if stat.S_ISDIR(mode) else "is not a regular file")
    if not overwrite:
        raise OutputExistsError(f"{path}: exists already")


def _create_beside(path: str) -> tuple[str, BinaryIO]:
    """A new, hidden file in the folder of `path`, with the permissions that the umask gives."""
    folder, name = os.path.split(path)
    short = os.fsencode(name)[:100].decode("utf-8", "ignore")  # names end at 255 bytes, or at 143 (eCryptfs)
    while True:
        temporary = os.path.join(folder, f".{short}.{secrets.token_hex(4)}.part")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
        return temporary, open(descriptor, "w+b")


def _publish(temporary: str, path: str, overwrite: bool) -> None:
    """Give the complete file its name, in one step."""
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        try:
            os.link(temporary, path)  # unlike a rename, it fails if the name is taken
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, "exists already") from None
            os.rename(temporary, path)
            return
    except FileExistsError:
        raise OutputExistsError(f"{path}: exists already") from None
    os.unlink(temporary)
