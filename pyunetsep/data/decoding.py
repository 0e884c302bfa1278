"""Sources -> stems: decoded, resampled, summed and checked."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ..audio import AudioReader, Resampler
from ..audio.files import file_error
from ..errors import AudioFileError, DataError
from .tracks import Source, Track

MAX_LENGTH_DIFFERENCE_S = 0.1  # codecs pad their last block; more is another recording
# What float16 holds with all of its 11 bits; a stem with nothing above it is silent.
SILENCE = 2.0**-14
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)  # this process, or the system, has too many open
_BLOCK = 1 << 16
# FFmpeg also reads playlists, which open other files and addresses: only containers that hold their streams themselves.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"


@dataclass(frozen=True)
class Part:
    """A recording that adds to a stem, and in what it must be like the song's others."""

    source: Source
    rate_hz: int  # of the file
    channels: int  # of the file
    duration_s: float


def decode_track(track: Track, sample_rate_hz: int, channels: int) -> dict[str, np.ndarray]:
    """All stems of a track, equally long: stem -> [channels, samples], float16, full scale 1.0.

    Raises:
        DataError: a file cannot be decoded, has no samples, more than two channels, or NaN, infinity or what is such
            in float16; a stem is silent; the files differ in sample rate or channels, or by more than
            `MAX_LENGTH_DIFFERENCE_S`. The message names the file.
    """
    stems: dict[str, np.ndarray] = {}
    parts: list[Part] = []
    for stem, sources in track.sources.items():
        total: np.ndarray | None = None
        for source in sources:
            part, wave = _decode(source, sample_rate_hz, channels)
            parts.append(part)
            if total is None:
                total = wave
            else:
                total = total[:, : wave.shape[1]]
                total += wave[:, : total.shape[1]]
        assert total is not None, f"{track.name}: no sources of {stem}"
        with np.errstate(over="ignore"):
            stems[stem] = total.astype(np.float16)
        if not np.isfinite(stems[stem]).all():
            raise DataError(f"{_listed(sources)}: louder than float16 can hold, {float(np.abs(total).max()):.3g}")
        if float(np.abs(stems[stem]).max()) < SILENCE:
            raise DataError(f"{_listed(sources)}: {'is' if len(sources) == 1 else 'are'} silent")
    check_alike(parts)
    samples = min(wave.shape[1] for wave in stems.values())
    return {stem: np.ascontiguousarray(wave[:, :samples]) for stem, wave in stems.items()}


def check_alike(parts: Sequence[Part]) -> None:
    """Whether a song's parts have one rate, as many channels, and but for a codec's padding one length.

    Raises:
        DataError: they do not; the message names two that differ.
    """
    first = parts[0]
    for other in parts:
        pair = f"{first.source} and {other.source}"
        if first.rate_hz != other.rate_hz:
            rates = f"{first.rate_hz} Hz and {other.rate_hz} Hz"
            raise DataError(f"{pair}: have {rates}; stems of a song must have one rate")
        if first.channels != other.channels:
            raise DataError(f"{pair}: have {first.channels} and {other.channels} channels; stems of a song must agree")
    longest, shortest = max(parts, key=lambda part: part.duration_s), min(parts, key=lambda part: part.duration_s)
    if longest.duration_s - shortest.duration_s > MAX_LENGTH_DIFFERENCE_S:
        lengths = f"{longest.duration_s:.2f} s and {shortest.duration_s:.2f} s"
        raise DataError(f"{longest.source} and {shortest.source}: last {lengths}; want equal lengths")


def _decode(source: Source, sample_rate_hz: int, channels: int) -> tuple[Part, np.ndarray]:
    """A whole file or stream, resampled: [channels, samples], float32, `channels` being 1 or 2."""
    try:
        with open_source(source) as (rate_hz, there, blocks):
            if there > 2:
                raise DataError(f"{source}: has {there} channels, want 1 or 2")
            resampler = Resampler(rate_hz, sample_rate_hz, min(there, channels))
            waves, samples = [], 0
            for block in blocks:
                if not np.isfinite(block).all():
                    at_s = (samples + int(np.argmin(np.isfinite(block).all(axis=0)))) / rate_hz
                    raise DataError(f"{source}: NaN or infinite at {at_s:.3f} s")
                samples += block.shape[1]
                waves.append(resampler.push(block.mean(axis=0, keepdims=True) if there > channels else block))
            waves.append(resampler.flush())
    except AudioFileError as error:
        if error.errno in OUT_OF_FILES:
            raise  # nothing is wrong with the data
        raise DataError(str(error)) from error
    if not samples:
        raise DataError(f"{source}: holds no samples")
    wave = np.concatenate(waves, axis=1)
    part = Part(source, rate_hz, there, wave.shape[1] / sample_rate_hz)
    return part, wave if len(wave) == channels else np.repeat(wave, channels, axis=0)


@contextmanager
def open_source(source: Source) -> Iterator[tuple[int, int, Iterator[np.ndarray]]]:
    """Sample rate, channels and waves of a source, until the context ends."""
    if source.stream == 0:
        with AudioReader(source.path) as reader:
            yield reader.sample_rate_hz, reader.channels, reader.blocks(_BLOCK)
        return
    try:
        import av
    except ModuleNotFoundError:
        raise file_error(str(source), "several streams in a file need PyAV: pip install 'pyunetsep[av]'") from None
    try:
        container: Any = av.open(str(source.path), options={"format_whitelist": _CONTAINERS})
    except (av.error.FFmpegError, ValueError) as error:
        raise file_error(str(source), f"FFmpeg cannot read it ({error})") from None
    with container:
        if source.stream >= len(container.streams.audio):
            raise file_error(str(source), f"there are only {len(container.streams.audio)} audio streams")
        frames = _frames(container, container.streams.audio[source.stream], source)
        first = next(frames, None)
        if first is None:
            raise file_error(str(source), "holds no sound")
        rate_hz, wave = first
        yield rate_hz, len(wave), chain([wave], (wave for _, wave in frames))


def _frames(container: Any, stream: Any, source: Source) -> Iterator[tuple[int, np.ndarray]]:
    """Sample rate and wave of each frame of a stream."""
    import av

    to_float, packets = av.AudioResampler(format="fltp"), 0
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in [*packet.decode(), *([] if packet.size else [None])]:
                for converted in to_float.resample(frame):
                    yield converted.sample_rate, converted.to_ndarray()
    except av.error.FFmpegError as error:
        raise file_error(str(source), f"damaged ({error.strerror})") from None
    if packets < stream.frames:
        raise file_error(str(source), f"cut off: its header promises {stream.frames} packets, {packets} are there")


def _listed(sources: tuple[Source, ...]) -> str:
    return ", ".join(map(str, sources))
