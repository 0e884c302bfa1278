"""Audio file -> wave."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from ..errors import AudioFileError, TruncatedAudioError
from .files import GuardedFile, SampleQueue, SplicedFile, file_error, sequential_sound_file
from .formats import SAMPLE_BYTES, AudioFormat
from .headers import closed_header, ends_within_mp4_box, ends_within_ogg_page, mp3_header, sound_extent
from .libsndfile import soundfile

_BLOCK = 1 << 16
_MAX_ALAC_FRAME = 1 << 16  # samples; files have 4096
_UNKNOWN = 1 << 40  # libsndfile says 2^63 - 1, an unbounded MP3 2^31 frames of 576 or 1152 samples
_WIDE_SUBTYPES = frozenset({"PCM_32", "DOUBLE", "ALAC_32"})
# libsndfile seeks in these to samples that differ near the end (Vorbis), so they are decoded up to the excerpt.
_INEXACT_SEEKING = frozenset({"OGG", "MP3"})
# libsndfile does not notice the end of these, and makes up samples as long as the header promises some.
_ENDLESS = frozenset({"SDS"})
# FFmpeg also reads playlists, which open other files and addresses: only formats that hold their sound themselves.
_AV_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,ac3,eac3,asf,avi,flv,mpeg,mpegts,ogg,mp3,wav,w64,aiff,flac,caf,"
    "ape,wv,tta,tak,mpc,mpc8,dsf,dts,truehd,amr,au,oma,rm,shn"
)


class _Decoder(Protocol):
    """A file being decoded from its start."""

    sample_rate_hz: int
    channels: int
    format: AudioFormat
    dtype: np.dtype
    samples: int | None  # as the header promises them; None: known only at the end
    surplus: int  # samples that the header may promise too much

    def read(self, samples: int) -> np.ndarray: ...
    def skip(self, samples: int) -> None: ...
    def close(self) -> None: ...


class AudioReader:
    """Reads an audio file, or an excerpt of it, block by block.

    All that libsndfile knows, and all that PyAV knows if it is installed (m4a, mp4, webm, ...). Integers become
    floats by 2^(1 - bits); values beyond full scale stay.

    Args:
        path: of the file.
        start_s: where the excerpt starts, to the nearest sample.
        duration_s: how long it is; None, or more than there is, for all up to the end.
    Attributes:
        path: as a string.
        sample_rate_hz, channels: of the file.
        samples: of the excerpt.
        format: an `AudioFormat`.
        dtype: of the waves, float32; float64 for files that hold more (PCM_32, DOUBLE).
    Raises:
        AudioFileError: no such file (`errno` says so), not readable, or not audio.
        TruncatedAudioError: the file ends before its header says it does. Known on opening for WAV, W64, AIFF, CAF,
            AU, Ogg, for MP3 with a Xing header, m4a, mp4 and Matroska, else when `read` gets there.
        ValueError: the excerpt starts beyond the end; a time is negative or NaN.
    """

    def __init__(self, path: str | os.PathLike[str], *, start_s: float = 0.0, duration_s: float | None = None) -> None:
        check_excerpt(start_s, duration_s)
        self.path = os.fspath(path)
        self._decoder: _Decoder | None = None
        self._position = 0
        if _is_pipe(self.path):  # opening one would wait for its writer
            reads_one = "`pyunetsep separate -` reads one, audio.spooled() makes a file of one"
            raise file_error(self.path, f"is a pipe; {reads_one}")
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115 - close() closes it
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise file_error(self.path, error) from None
        try:
            if not self._file.seekable():
                raise file_error(self.path, "cannot seek in it; copy a pipe with audio.spooled() first")
            self._decoder = _decoder(self._file, self.path)
            self.sample_rate_hz, self.channels = self._decoder.sample_rate_hz, self._decoder.channels
            self.format, self.dtype = self._decoder.format, self._decoder.dtype
            total = self._decoder.samples
            if total is None:
                total = _count(self._decoder)
                self._decoder.close()
                self._decoder = _decoder(self._file, self.path)
            if start_s > 0 and not start_s * self.sample_rate_hz < total - 0.5:
                raise ValueError(f"start_s: got {start_s}, but {self.path} ends at {total / self.sample_rate_hz:g} s")
            self._start = round(start_s * self.sample_rate_hz)
            self.samples = total - self._start
            if duration_s is not None and duration_s * self.sample_rate_hz < self.samples:
                self.samples = round(duration_s * self.sample_rate_hz)
            self._decoder.skip(self._start)
        except BaseException:
            self.close()
            raise

    def read(self, samples: int) -> np.ndarray:
        """The next `samples` samples: [channels, samples], fewer only at the end, [channels, 0] after it.

        Raises:
            AudioFileError, TruncatedAudioError: the rest of the file is damaged, or not there.
        """
        if self._decoder is None:
            raise ValueError("read of a closed AudioReader")
        wanted = max(0, min(samples, self.samples - self._position))
        wave = self._decoder.read(wanted)
        missing = wanted - wave.shape[1]
        if missing > self._decoder.surplus:
            promised, there = self._decoder.samples, self._start + self._position + wave.shape[1]
            raise cut_off(self.path, f"{promised} samples", str(there))
        if missing:
            wave = np.pad(wave, ((0, 0), (0, missing)))
        self._position += wanted
        return wave

    def blocks(self, samples: int) -> Iterator[np.ndarray]:
        """Waves of `samples` samples, the last one of fewer, until the end."""
        if samples < 1:
            raise ValueError(f"samples: got {samples}, want at least 1")
        while (wave := self.read(samples)).shape[1]:
            yield wave

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            decoder.close()
        self._file.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cut_off(path: str, promised: str, there: str) -> TruncatedAudioError:
    """The error of a file that has less than its header promises; both with their unit, but that of `there`."""
    return TruncatedAudioError(f"{path}: cut off: its header promises {promised}, {there} are there")


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # whoever opens it says why
        return False


def check_excerpt(start_s: float, duration_s: float | None) -> None:
    """Raise a ValueError that names the argument, unless both are times."""
    if not start_s >= 0:
        raise ValueError(f"start_s: got {start_s}, want seconds from 0 on")
    if duration_s is not None and not duration_s > 0:
        raise ValueError(f"duration_s: got {duration_s}, want seconds above 0, or None")


def _count(decoder: _Decoder) -> int:
    samples = 0
    while count := decoder.read(_BLOCK).shape[1]:
        samples += count
    return samples


def _decoder(file: BinaryIO, path: str) -> _Decoder:
    """Open by libsndfile, else by PyAV."""
    try:
        if file.seek(0, os.SEEK_END) == 0:
            raise file_error(path, "is empty")
        try:
            return LibsndfileDecoder(file, path)
        except soundfile.LibsndfileError as error:
            reason = _reason(error)
        try:
            import av  # noqa: F401
        except ModuleNotFoundError:
            raise file_error(
                path,
                f"not an audio file that libsndfile knows ({reason}); "
                "for m4a, mp4, webm and the like: pip install 'pyunetsep[av]'",
            ) from None
        try:
            return _AvDecoder(file, path)
        except _NotAudio as error:
            if ends_within_mp4_box(file):
                raise TruncatedAudioError(f"{path}: cut off, or never completed: its index is damaged") from None
            raise file_error(path, f"{error} (libsndfile: {reason})") from None
    except AudioFileError:
        raise
    except OSError as error:
        raise file_error(path, error) from error


def _reason(error: soundfile.LibsndfileError) -> str:
    text = error.error_string.strip().rstrip(".")
    return text[8:] if text.startswith("Error : ") else text


class LibsndfileDecoder:
    def __init__(self, file: BinaryIO, path: str) -> None:
        self._path = path
        self._position = 0
        self.surplus = 0
        extent, mp3 = sound_extent(file), mp3_header(file)  # all that moves `file` comes before libsndfile reads
        cut_ogg = ends_within_ogg_page(file)
        cut_chunk = extent is not None and extent.promised is not None and extent.promised > extent.available
        if extent is not None and extent.promised is None and (head := closed_header(file, extent)):
            file = cast(BinaryIO, SplicedFile(file, head, extent.start))
        elif mp3 is not None and mp3.unbounded:
            file = cast(BinaryIO, SplicedFile(file, mp3.unbounded, mp3.start))
        file.seek(0)
        self._guard = GuardedFile(file)
        try:
            self._file = sequential_sound_file(self._guard)
        except soundfile.LibsndfileError:
            self._guard.check()
            if extent is not None and cut_chunk:
                raise cut_off(self._path, f"{extent.promised} bytes of sound", str(extent.available)) from None
            if cut_ogg:
                raise TruncatedAudioError(f"{path}: cut off within its first Ogg pages") from None
            raise
        self.sample_rate_hz, self.channels = self._file.samplerate, self._file.channels
        self.format = AudioFormat(self._file.format, self._file.subtype)
        self.dtype = np.dtype(np.float64 if self.format.subtype in _WIDE_SUBTYPES else np.float32)
        frames = self._file.frames
        self.samples: int | None = None if frames > _UNKNOWN else frames
        try:
            self._guard.check()
            if extent is not None and extent.promised is not None and cut_chunk:
                frame_bytes = SAMPLE_BYTES.get(self.format.subtype, 0) * self.channels
                if frame_bytes:
                    raise cut_off(self._path, f"{extent.promised // frame_bytes} samples", str(frames))
                raise cut_off(self._path, f"{extent.promised} bytes of sound", str(extent.available))
            if self.format.container == "OGG" and cut_ogg:
                raise TruncatedAudioError(f"{path}: cut off within an Ogg page, after {frames} samples")
            if self.format.container == "MP3" and mp3 is not None:
                if not mp3.counts_frames:
                    self.samples = None  # libsndfile guesses
                elif mp3.promised is not None:
                    if mp3.promised > mp3.available:
                        raise cut_off(self._path, f"{frames} samples in {mp3.promised} bytes", f"{mp3.available} bytes")
                    self.surplus = 2 * 1152  # all is there, but some encoders count the header frame too
            self._guard.reached_end = False  # while opening it
        except BaseException:
            self._file.close()
            raise

    def read(self, samples: int) -> np.ndarray:
        waves = np.empty((samples, self.channels), self.dtype)
        done = 0
        try:
            while done < samples:
                count = len(self._file.read(out=waves[done:]))
                self._guard.check()
                if count == 0:
                    break
                done += count
        except soundfile.LibsndfileError as error:
            try:
                self._guard.check()
            except OSError as os_error:
                raise file_error(self._path, os_error) from os_error
            text = f"{self._path}: damaged after sample {self._position + done} ({_reason(error)})"
            if self._guard.reached_end and self.samples is not None:
                raise TruncatedAudioError(f"{text}; its header promises {self.samples} samples") from None
            raise AudioFileError(text) from None
        except OSError as error:
            raise file_error(self._path, error) from error
        self._position += done
        if self.format.container in _ENDLESS and self._guard.reached_end:
            raise cut_off(self._path, f"{self.samples} samples", f"fewer than {self._position}")
        return np.ascontiguousarray(waves[:done].T)

    def skip(self, samples: int) -> None:
        if samples and self.samples is not None and self.format.container not in _INEXACT_SEEKING:
            try:
                self._file.seek(samples)
                self._position = samples
                return
            except soundfile.LibsndfileError:
                pass  # some codecs cannot
        while samples > 0 and (count := self.read(min(samples, _BLOCK)).shape[1]):
            samples -= count

    def close(self) -> None:
        self._file.close()


class _NotAudio(Exception):
    """PyAV does not know the file either."""


class _AvDecoder:
    """The first audio stream of what FFmpeg reads, as float32."""

    samples: int | None = None
    surplus = 0
    dtype = np.dtype(np.float32)

    def __init__(self, file: BinaryIO, path: str) -> None:
        import av

        self._path, self._av_error = path, av.error.FFmpegError
        file.seek(0)
        try:
            self._container: Any = av.open(file, options={"format_whitelist": _AV_FORMATS})
        except (self._av_error, ValueError) as error:
            text = str(error.strerror if isinstance(error, av.error.FFmpegError) else error)
            raise _NotAudio(f"not an audio file that libsndfile or FFmpeg knows: {text}") from None
        try:
            if not self._container.streams.audio:
                raise _NotAudio("holds no sound")
            self._stream = self._container.streams.audio[0]
            _check_codec(self._stream.codec_context)
            name = PurePath(path).suffix[1:] or self._container.format.name.split(",")[0]
            self.format = AudioFormat(name.upper(), self._stream.codec_context.name.upper())
            self._waves = self._decode(av.AudioResampler(format="flt"))  # interleaved: PyAV crashes on nine planes
            first = next(self._waves, None)
            if first is None:
                raise file_error(path, "holds no sound")
        except BaseException:
            self._container.close()
            raise
        self.channels = first.shape[0]
        self._queue = SampleQueue(self.channels)
        self._queue.push(first)

    def _decode(self, to_float: Any) -> Iterator[np.ndarray]:
        packets, end_s, first = 0, 0.0, None
        try:
            for packet in self._container.demux():
                if packet.pts is not None and packet.time_base:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != self._stream.index:
                    continue
                packets += packet.size > 0
                for frame in [*packet.decode(), *([] if packet.size else [None])]:
                    first = first or frame
                    if frame is not None and _kind(frame) != _kind(first):
                        raise file_error(self._path, f"damaged, or {_kind(first)} becomes {_kind(frame)} in the middle")
                    for converted in to_float.resample(frame):
                        # known only now: HE-AAC announces half its rate
                        self.sample_rate_hz = converted.sample_rate
                        yield converted.to_ndarray().reshape(-1, converted.layout.nb_channels).T
        except self._av_error as error:
            raise file_error(self._path, f"damaged ({error.strerror})") from None
        self._check_whole(packets, end_s)

    def _check_whole(self, packets: int, end_s: float) -> None:
        """Compare what came with what the header promises, in the containers whose header can be trusted."""
        container, stream = self._container, self._stream
        promised, there, unit, tolerance = 0.0, 0.0, "", 0.0
        if container.format.name.startswith("mov,") and not stream.codec_context.name.startswith("pcm_"):
            promised, there, unit = stream.frames, packets, "packets"  # of PCM it counts samples
        elif container.format.name.startswith("matroska,") and stream.duration is None and container.duration:
            # the length of the longest stream; where the header has none, FFmpeg guesses that of each stream, too
            promised, there, unit = container.duration / 1e6, end_s, "seconds"
            tolerance = max(1.0, 0.01 * promised)  # muxers round, or count a last frame that is not there
        if there < promised - tolerance:
            raise cut_off(self._path, f"{promised:.10g} {unit}", f"{there:.10g}")

    def read(self, samples: int) -> np.ndarray:
        while self._queue.samples < samples:
            wave = next(self._waves, None)
            if wave is None:
                break
            self._queue.push(wave)
        return np.ascontiguousarray(self._queue.pull(samples))

    def skip(self, samples: int) -> None:
        while samples > 0 and (count := self.read(min(samples, _BLOCK)).shape[1]):
            samples -= count

    def close(self) -> None:
        self._container.close()


def _kind(frame: Any) -> str:
    """What all frames of a file must have in common."""
    return f"{frame.layout.name} {frame.format.name} of {frame.sample_rate} Hz"


def _check_codec(codec: Any) -> None:
    """Refuses what FFmpeg has no decoder for, and what would have its decoder take gigabytes before the first frame."""
    if codec is None:
        raise _NotAudio("its sound is of a kind that FFmpeg cannot decode")
    # the fourth number of ALAC's own header: room is made for as many samples of every channel
    if codec.name == "alac" and int.from_bytes((codec.extradata or b"")[12:16], "big") > _MAX_ALAC_FRAME:
        raise _NotAudio(f"damaged: promises ALAC frames of more than {_MAX_ALAC_FRAME} samples")
