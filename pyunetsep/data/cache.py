"""Tracks -> recordings: decoded once, kept as float16, read through memory maps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import npy
from ..atomic import replacing
from ..audio.files import file_error
from ..errors import DataError
from ..song_files import StrPath
from .decoding import OUT_OF_FILES, decode_track
from .tracks import Track

_FORMAT = 1  # of the cache; a change of how waves are made must change it
_STALE_S = 24 * 3600.0  # what killed runs left is removed after this
# Threads that decode. Each holds a source whole in float32, and twice while its blocks are joined: ten minutes of
# stereo at 44.1 kHz are 0.4 GB. With one a core, a machine of many cores would need tens of gigabytes.
_WORKERS = 4


@dataclass(frozen=True, eq=False)
class Recording:
    """A track that can be heard.

    Attributes:
        track: what it is.
        waves: stem -> [channels, samples], float16 of full scale 1.0, memory-mapped and read only; equally long.
        sample_rate_hz: of the waves.
    """

    track: Track
    waves: Mapping[str, np.ndarray]
    sample_rate_hz: int

    @property
    def samples(self) -> int:
        """Length of each wave."""
        return int(next(iter(self.waves.values())).shape[1])

    @property
    def duration_s(self) -> float:
        return self.samples / self.sample_rate_hz


def _print(message: str) -> None:
    print(message, file=sys.stderr)


def load_recordings(
    tracks: Sequence[Track],
    *,
    sample_rate_hz: int,
    channels: int,
    cache: StrPath,
    strict: bool = False,
    progress: Callable[[int, int], object] | None = None,
    notify: Callable[[str], object] = _print,
) -> list[Recording]:
    """Decode the tracks, or find them decoded.

    What is in the cache is whole, and is not made again: a killed run goes on where it was, and several may share a
    cache. A file that has changed (path, size or time) is decoded anew.

    Args:
        tracks: from `find_tracks`; each has one of STEMS or both.
        sample_rate_hz: to resample to.
        channels: 1 (the mean of two) or 2 (a single one twice).
        cache: folder, made if it is not there.
        strict: whether a track that cannot be used is an error.
        progress: called with tracks done and tracks in all.
        notify: called with what is wrong with a track that is left out; by default it is printed to standard error.
    Returns:
        The tracks' recordings, in their order.
    Raises:
        DataError: nothing is left, or with `strict` anything is wrong (see `decode_track`).
        AudioFileError: the cache cannot be written, or there are more files than the system lets a process open.
        ValueError: `sample_rate_hz` or `channels` cannot be.
    """
    if sample_rate_hz < 1:
        raise ValueError(f"sample_rate_hz: got {sample_rate_hz}, want at least 1")
    if channels not in (1, 2):
        raise ValueError(f"channels: got {channels}, want 1 or 2")
    folder = Path(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(f"{folder}: the cache cannot be made", error) from None
    _remove_stale(folder)
    _allow_many_files()

    recordings: dict[int, Recording] = {}
    with _pool() as pool:
        futures: dict[Future[Recording], int] = {
            pool.submit(_load, track, sample_rate_hz, channels, folder): index for index, track in enumerate(tracks)
        }
        for done, future in enumerate(as_completed(futures), 1):
            try:
                recordings[futures[future]] = future.result()
            except DataError as error:
                if strict:
                    raise
                notify(f"{error}; {tracks[futures[future]].name} is left out")
            if progress is not None:
                progress(done, len(tracks))
    if not recordings:
        raise DataError(f"no data: of {len(tracks)} tracks none can be used")
    return [recordings[index] for index in sorted(recordings)]


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that decode; an error, or an interrupt, drops what has not begun."""
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _WORKERS))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _load(track: Track, sample_rate_hz: int, channels: int, folder: Path) -> Recording:
    files = _cache_files(track, sample_rate_hz, channels, folder)
    waves = _mapped(files, channels)
    if waves is None:
        decoded = decode_track(track, sample_rate_hz, channels)
        for stem, file in files.items():
            _publish(decoded[stem], file)
        waves = _mapped(files, channels)
        if waves is None:
            raise file_error(str(folder), f"the cache does not keep what is written to it ({track.name})")
    return Recording(track, waves, sample_rate_hz)


def _cache_files(track: Track, sample_rate_hz: int, channels: int, folder: Path) -> dict[str, Path]:
    """Where the stems are, or will be. The key is the track's, for its stems were checked, and cut, together."""
    stems: dict[str, list[list[str | int]]] = {}
    for stem, sources in track.sources.items():
        stems[stem] = []
        for source in sources:
            try:
                status = os.stat(source.path)
            except OSError as error:
                raise DataError(str(file_error(str(source.path), error))) from error
            path = str(source.path.resolve())
            stems[stem].append([path, status.st_size, status.st_mtime_ns, source.stream])
    key = json.dumps([_FORMAT, stems, sample_rate_hz, channels], sort_keys=True)
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return {stem: folder / f"{digest}-{stem}.npy" for stem in track.sources}


def _mapped(files: Mapping[str, Path], channels: int) -> dict[str, np.ndarray] | None:
    """The stems in the cache; None if one is not there, or not whole."""
    waves: dict[str, np.ndarray] = {}
    for stem, file in files.items():
        try:
            wave = npy.load(file, mmap_mode="r")
            size = file.stat().st_size
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                raise file_error(f"{file}: cannot be mapped into memory; ulimit -n may help", error) from None
            return None
        except (EOFError, ValueError, SyntaxError):
            return None
        whole = isinstance(wave, np.memmap) and size == wave.offset + wave.nbytes
        if not (whole and wave.dtype == np.float16 and wave.ndim == 2 and len(wave) == channels and wave.shape[1]):
            return None
        waves[stem] = wave
    return waves if len({wave.shape[1] for wave in waves.values()}) == 1 else None


def _publish(wave: np.ndarray, path: Path) -> None:
    """Write a wave to the cache, where it appears when it is complete."""
    try:
        with replacing(path) as file:
            np.save(file, wave, allow_pickle=False)
    except OSError as error:
        raise file_error(f"{path.parent}: the cache cannot be written", error) from None


def _allow_many_files() -> None:
    """A memory map keeps its file open: the soft limit, 1024 as a rule, would be that of about 500 songs."""
    try:
        import resource
    except ModuleNotFoundError:  # not a Unix
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses a limit of infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _remove_stale(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink()
