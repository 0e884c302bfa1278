"""Accompaniments that stand on both sides of a split: karaoke tracks are shared among singers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_atomically
from ..audio import Resampler
from ..song_files import StrPath
from .cache import Recording

_FORMAT = 1  # of kept scores; a change of how they are computed must change it
RATE_HZ = 2000
_FFT = 1 << 16
_PIECES = 256  # whose spectra are held at once, 67 MB
_TOGETHER = 4  # inverse transforms at once: they should stay in a core's cache
# Below -60 dB of full scale a window's level is not divided by: rounding would look like likeness.
_FLOOR = 1e-3


@dataclass(frozen=True)
class _Tracks:
    """Training accompaniments, one behind the other, and 1 / norm of the window that starts at each sample."""

    wave: np.ndarray
    inverse_norm: np.ndarray  # 0 where the window ends in the next track
    starts: np.ndarray


def shared_accompaniments(
    held_out: Sequence[Recording],
    train: Sequence[Recording],
    *,
    piece_s: float = 10.0,
    threshold: float = 0.5,
    cache: StrPath | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[tuple[str, str, float]]:
    """Which training tracks have an accompaniment in common with a held-out one.

    The score of a pair is the largest magnitude of the normalised cross-correlation of any piece p of the held-out
    accompaniment with any window of the training one x, at 2 kHz in mono:

        |sum_n p[n] x[k + n]| / (|p| |x[k ... k + N - 1]|)

    The same recording scores near 1, even through codecs; different ones usually 0.1 to 0.25. Of an accompaniment that
    is shorter than a piece the rest counts as silence: at a quarter of its length the same recording scores 0.5. So
    does what is shared by a quarter of a piece's energy. Among MIR-1K's singers, whose clips have 4 to 13 s, pieces of
    10 s score 0.89 to 1 where karaoke tracks are shared, and up to 0.29 where none is; pieces of 5 s up to 0.43.

    Args:
        held_out, train: recordings; those without an accompaniment do not matter.
        piece_s: length of the pieces; a shorter accompaniment is one.
        threshold: from which score on two are the same.
        cache: folder in which what is found is kept, so that a search among the same recordings is not repeated; those
            of `load_recordings` are known by their files, and where any has none the search is made each time. A
            folder that cannot be written is not used.
        progress: called with pieces done and pieces in all.
    Returns:
        Name of the training track, name of the held-out one, score; the largest score first.
    Raises:
        ValueError: `piece_s` or `threshold` is not above 0, or a piece is longer than 16 seconds.
    """
    samples = round(piece_s * RATE_HZ) if piece_s > 0 else 0
    if not 0 < samples < _FFT // 2:
        raise ValueError(f"piece_s: got {piece_s}, want seconds above 0 and up to 16")
    if not threshold > 0:
        raise ValueError(f"threshold: got {threshold}, want a score above 0")
    held_out = [recording for recording in held_out if "accompaniment" in recording.waves]
    train = [recording for recording in train if "accompaniment" in recording.waves]
    if not held_out or not train:
        return []
    kept = None if cache is None else _kept_at(Path(cache), held_out, train, piece_s, threshold)
    pairs = None if kept is None else _read_pairs(kept, len(held_out), len(train), threshold)
    if pairs is None:
        scores = _scores(held_out, train, samples, progress)
        rows, columns = np.nonzero(scores >= threshold)
        pairs = [(int(row), int(column), float(scores[row, column])) for row, column in zip(rows, columns, strict=True)]
        if kept is not None:
            with suppress(OSError):  # what was found is no worse for it
                write_atomically(kept, json.dumps(pairs).encode())
    found = [(train[column].track.name, held_out[row].track.name, score) for row, column, score in pairs]
    return sorted(found, key=lambda leak: (-leak[2], leak[:2]))


def _kept_at(
    folder: Path, held_out: Sequence[Recording], train: Sequence[Recording], piece_s: float, threshold: float
) -> Path | None:
    """The file of a search's results; None if recordings are not those of a cache, whose names tell what they hold."""
    sides: list[list[Any]] = []
    for recordings in (held_out, train):
        sides.append([])
        for recording in recordings:
            wave = recording.waves["accompaniment"]
            if not isinstance(wave, np.memmap) or wave.filename is None:
                return None
            sides[-1].append([Path(wave.filename).name, *wave.shape])  # a part of a map has the map's name
    key = json.dumps([_FORMAT, piece_s, threshold, sides])
    return folder / f"leaks-{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read_pairs(path: Path, held_out: int, train: int, threshold: float) -> list[tuple[int, int, float]] | None:
    """What `shared_accompaniments` kept: indices and scores; None if there is nothing, or it is damaged."""

    def checked(row: Any, column: Any, score: Any) -> tuple[int, int, float]:
        if not (type(row) is type(column) is int and 0 <= row < held_out and 0 <= column < train):
            raise ValueError
        if type(score) is not float or not threshold <= score < 2:  # NaN is neither
            raise ValueError
        return row, column, score

    try:
        return [checked(*pair) for pair in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _scores(
    held_out: Sequence[Recording],
    train: Sequence[Recording],
    samples: int,
    progress: Callable[[int, int], object] | None,
) -> np.ndarray:
    """[held out, train]: the score of each pair, with pieces of so many samples."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pieces: list[np.ndarray] = []
        owners: list[int] = []
        for owner, wave in enumerate(pool.map(_at_low_rate, held_out)):
            cut = _pieces(wave, samples)
            pieces += cut
            owners += [owner] * len(cut)
        tracks = _joined(list(pool.map(_at_low_rate, train)), samples)
        scores = np.zeros((len(held_out), len(train)), np.float32)
        for first in range(0, len(pieces), _PIECES):
            some = pieces[first : first + _PIECES]
            spectra = np.conj(np.fft.rfft(np.stack(some), _FFT)).astype(np.complex64, copy=False)
            starts = range(0, len(tracks.wave) - samples + 1, _FFT - samples + 1)
            blocks = pool.map(lambda start, spectra=spectra: _block_scores(tracks, spectra, start, samples), starts)
            for here, best in blocks:
                for piece, row in enumerate(best):
                    np.maximum.at(scores[owners[first + piece]], here, row)
            if progress is not None:
                progress(min(first + _PIECES, len(pieces)), len(pieces))
    return scores


def without_leaks(train: Sequence[Recording], leaks: Sequence[tuple[str, str, float]]) -> list[Recording]:
    """The training recordings less the accompaniments that leak: of a song the vocals stay, as a loose recording."""
    leaking = {name for name, _, _ in leaks}
    kept = []
    for recording in train:
        if recording.track.name not in leaking or "accompaniment" not in recording.waves:
            kept.append(recording)
        elif "vocals" in recording.waves:
            sources = {"vocals": recording.track.sources["vocals"]}
            track = replace(recording.track, kind="vocals", sources=sources)
            kept.append(replace(recording, track=track, waves={"vocals": recording.waves["vocals"]}))
    return kept


def _at_low_rate(recording: Recording) -> np.ndarray:
    """The accompaniment in mono at RATE_HZ: [samples], float32."""
    wave = recording.waves["accompaniment"]
    resampler = Resampler(recording.sample_rate_hz, RATE_HZ, 1)
    step = 1 << 20
    blocks = (
        wave[:, at : at + step].astype(np.float32).mean(axis=0, keepdims=True) for at in range(0, wave.shape[1], step)
    )
    return np.concatenate([*map(resampler.push, blocks), resampler.flush()], axis=1)[0]


def _pieces(wave: np.ndarray, samples: int) -> list[np.ndarray]:
    """The wave in pieces of norm 1, the last from its end on back; silent ones are left out."""
    if len(wave) < samples:
        wave = np.pad(wave, (0, samples - len(wave)))
    starts = [*range(0, len(wave) - samples, samples), len(wave) - samples]
    pieces = [wave[start : start + samples] for start in starts]
    norms = [float(np.linalg.norm(piece)) for piece in pieces]
    return [piece / norm for piece, norm in zip(pieces, norms, strict=True) if norm > _FLOOR * samples**0.5]


def _joined(waves: list[np.ndarray], samples: int) -> _Tracks:
    # In what is shorter than a piece, a window may start before it and end behind it.
    waves = [np.pad(wave, max(0, samples - len(wave))) for wave in waves]
    norms = []
    for wave in waves:
        energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
        norm = np.sqrt(np.maximum(energy[samples:] - energy[:-samples], samples * _FLOOR**2))
        norms.append(np.pad(1 / norm, (0, samples - 1)))
    starts = np.cumsum([0, *map(len, waves)])[:-1]
    return _Tracks(np.concatenate(waves), np.concatenate(norms).astype(np.float32), starts)


def _block_scores(tracks: _Tracks, spectra: np.ndarray, start: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The tracks in one block, and the largest score of each piece with each: [pieces, tracks]."""
    block = tracks.wave[start : start + _FFT]
    lags = len(block) - samples + 1  # whose windows lie in the block
    inverse_norm = tracks.inverse_norm[start : start + lags]
    first = int(np.searchsorted(tracks.starts, start, side="right")) - 1
    last = int(np.searchsorted(tracks.starts, start + lags))
    edges = np.maximum(tracks.starts[first:last] - start, 0)
    spectrum = np.fft.rfft(block, _FFT).astype(np.complex64, copy=False)
    best = np.empty((len(spectra), last - first), np.float32)
    for at in range(0, len(spectra), _TOGETHER):
        correlation = np.fft.irfft(spectra[at : at + _TOGETHER] * spectrum, _FFT)[:, :lags]
        likeness = np.abs(correlation)
        likeness *= inverse_norm
        best[at : at + _TOGETHER] = np.maximum.reduceat(likeness, edges, axis=1)
    return np.arange(first, last), best
