"""Tracks -> songs: which of the data is evaluated, and its samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..audio import Wave
from ..data import STEMS, Source, Track, find_tracks, matching_tracks, split_tracks
from ..data.decoding import Part, check_alike, open_source
from ..errors import DataError
from ..song_files import StrPath
from .song import Song

SPLITS = ("all", "train", "validation", "test")


def find_songs(data: Sequence[StrPath], *, split: str = "all", only: Sequence[str] = ()) -> list[Track]:
    """The songs with known stems among the data.

    Args:
        data: folders and manifests, see `pyunetsep.data.find_tracks`.
        split: "train", "validation" or "test" for those that the data itself puts there; unstated counts as "train".
        only: names or groups, or patterns of them as a shell's.
    Raises:
        DataError: there are none, or none that one of the patterns matches; the message says what there is.
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
        here = list(getattr(sides, split))
        if not here:
            counts = ", ".join(f"{len(getattr(sides, side))} in {side}" for side in SPLITS[1:])
            raise DataError(f"{where}: no song is in {split}; of {len(songs)} there are {counts}")
        songs = here
    chosen = {track for pattern in only for track in matching_tracks(pattern, songs)}
    return [track for track in songs if not only or track in chosen]


def read_song(track: Track) -> Song:
    """A song at its own rate, its stems the sums of their sources, float32.

    Raises:
        AudioFileError: a file cannot be read. DataError: rates, channels or lengths do not fit together, or there are
            no samples, or NaN; the message names the file.
    """
    recordings = [(stem, *_read(source)) for stem in STEMS for source in track.sources[stem]]
    check_alike([part for _, part, _ in recordings])
    samples = min(wave.shape[1] for _, _, wave in recordings)
    stems: dict[str, Wave] = {}
    for stem, _, wave in recordings:
        stems[stem] = stems[stem] + wave[:, :samples] if stem in stems else wave[:, :samples]
    return Song(stems, recordings[0][1].rate_hz)


def _read(source: Source) -> tuple[Part, Wave]:
    """A whole file or stream at its own rate: [channels, samples]."""
    with open_source(source) as (rate_hz, channels, blocks):
        wave = np.concatenate([np.empty((channels, 0), np.float32), *blocks], axis=1, dtype=np.float32)
    if not wave.shape[1]:
        raise DataError(f"{source}: holds no samples")
    if not np.isfinite(wave).all():
        raise DataError(f"{source}: holds NaN or infinite samples")
    return Part(source, rate_hz, channels, wave.shape[1] / rate_hz), wave


def fingerprint(track: Track) -> list[Any]:
    """What changes when a song's files do: [name, stream, bytes, time of change in ns] each."""
    found = []
    for stem in STEMS:
        for source in track.sources[stem]:
            about = os.stat(source.path)
            found.append([source.path.name, source.stream, about.st_size, about.st_mtime_ns])
    return found
