"""Tracks -> songs: which of the data is evaluated, and its samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..audio import Wave
from ..data import Source, Track, find_tracks, split_tracks
from ..data.decoding import MAX_LENGTH_DIFFERENCE_S, open_source
from ..errors import DataError
from ..song_files import StrPath
from .song import STEMS, Song

SPLITS = ("all", "train", "validation", "test")


def find_songs(data: Sequence[StrPath], *, split: str = "all", only: Sequence[str] = ()) -> list[Track]:
    """The songs with known stems among the data.

    Args:
        data: folders and manifests, see `pyunetsep.data.find_tracks`.
        split: "train", "validation" or "test" for those that the data itself puts there; unstated counts as "train".
        only: patterns, as a shell's, of names or groups.
    Raises:
        DataError: there are none; the message says what there is.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    tracks = find_tracks(data)
    songs = [track for track in tracks if track.kind == "song"]
    where = ", ".join(os.fspath(path) for path in data)
    if not songs:
        raise DataError(f"{where}: holds {len(tracks)} loose recordings, but no song with both stems to evaluate on")
    if split != "all":
        sides = split_tracks(songs, share=0)
        chosen = list(getattr(sides, split))
        if not chosen:
            counts = ", ".join(f"{len(getattr(sides, side))} in {side}" for side in SPLITS[1:])
            raise DataError(f"{where}: no song is in {split}; of {len(songs)} there are {counts}")
        songs = chosen
    for pattern in only:
        if not any(_matches(track, pattern) for track in songs):
            raise DataError(f"{pattern!r} matches none of {len(songs)} songs, {songs[0].name!r} for one")
    return [track for track in songs if not only or any(_matches(track, pattern) for pattern in only)]


def _matches(track: Track, pattern: str) -> bool:
    return fnmatchcase(track.name, pattern) or fnmatchcase(track.group, pattern)


def read_song(track: Track) -> Song:
    """A song at its own rate, its stems the sums of their sources, float32.

    Raises:
        AudioFileError: a file cannot be read. DataError: rates, channels or lengths do not fit together, or there are
            no samples, or NaN; the message names the file.
    """
    recordings = [(stem, source, *_read(source)) for stem in STEMS for source in track.sources[stem]]
    _, first, rate_hz, wave = recordings[0]
    shortest = min(recordings, key=lambda recording: recording[3].shape[1])
    samples = shortest[3].shape[1]
    stems: dict[str, Wave] = {}
    for stem, source, other_hz, other in recordings:
        if other_hz != rate_hz:
            raise DataError(
                f"{source}: has {other_hz} Hz, {first} has {rate_hz} Hz; stems of a song must have one rate"
            )
        if len(other) != len(wave):
            raise DataError(f"{source}: has {len(other)} channels, {first} has {len(wave)}; a song's stems must agree")
        if other.shape[1] - samples > MAX_LENGTH_DIFFERENCE_S * rate_hz:
            lasts, less = other.shape[1] / rate_hz, samples / rate_hz
            raise DataError(f"{source}: lasts {lasts:.2f} s, {shortest[1]} lasts {less:.2f} s; want equal lengths")
        stems[stem] = stems[stem] + other[:, :samples] if stem in stems else other[:, :samples]
    return Song(stems, rate_hz)


def _read(source: Source) -> tuple[int, Wave]:
    """Sample rate in Hz, and [channels, samples]."""
    with open_source(source) as (rate_hz, channels, blocks):
        wave = np.concatenate([np.empty((channels, 0), np.float32), *blocks], axis=1, dtype=np.float32)
    if not wave.shape[1]:
        raise DataError(f"{source}: holds no samples")
    if not np.isfinite(wave).all():
        raise DataError(f"{source}: holds NaN or infinite samples")
    return rate_hz, wave


def fingerprint(track: Track) -> list[Any]:
    """What changes when a song's files do: [name, stream, bytes, time of change in ns] each."""
    found = []
    for stem in STEMS:
        for source in track.sources[stem]:
            about = os.stat(source.path)
            found.append([source.path.name, source.stream, about.st_size, about.st_mtime_ns])
    return found
