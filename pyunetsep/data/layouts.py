"""Folders and manifests -> tracks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..audio import AUDIO_EXTENSIONS
from ..errors import DataError
from ..song_files import StrPath
from .manifest import MANIFEST, read_manifest
from .tracks import KINDS, STEMS, Found, Kind, Side, Source, Track

LAYOUTS = f"""understood are
  song/vocals.* and song/accompaniment.* (any of the two, in folders of any depth)
  MUSDB18-HQ: song/vocals.*, drums.*, bass.* and other.*
  MUSDB18: *.stem.mp4
  loose recordings in folders called vocals, singing, speech or accompaniment
  a table of recordings, {MANIFEST} or any other .csv"""

_SPLITS: dict[str, Side] = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
_BAND = ("drums", "bass", "other")  # MUSDB's accompaniment
_STEM_MP4 = ".stem.mp4"
_STEM_MP4_STREAMS = {"vocals": (4,), "accompaniment": (1, 2, 3)}  # 0 is the mixture


@dataclass(frozen=True)
class _Inherited:
    """What a folder's name says of all that is in it."""

    kind: Kind | None = None
    split: Side = ""

    def entered(self, folder: Path) -> _Inherited:
        name = folder.name.casefold()
        return _Inherited(KINDS.get(name, self.kind), _SPLITS.get(name, self.split))


def find_tracks(paths: Sequence[StrPath]) -> list[Track]:
    """All tracks of folders and manifests, in the order of their names in the file system.

    A folder with a `manifest.csv` is what that says. Else stems are told by the names of files, loose recordings by
    that of their folder, and folders called train, validation or test say where their tracks belong. Names that occur
    twice get their parent folders' in front.

    Args:
        paths: of folders and CSV files.
    Raises:
        DataError: nothing was found, a file was found twice, stems are missing or ambiguous, a manifest is wrong (see
            `read_manifest`); the message names the folder, or file and row.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths: got {paths!r}, want a list of paths")
    found: list[Found] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir():
            here = list(_in_folder(path, _Inherited()))
        elif path.suffix.casefold() == ".csv":
            here = read_manifest(path)
        else:
            raise DataError(f"{path}: is neither a folder nor a .csv file; {LAYOUTS}")
        if not here:
            raise DataError(f"{path}: no stems found; {LAYOUTS}")
        found += here
    if not found:
        raise DataError(f"no data: no folder and no manifest was given; {LAYOUTS}")
    _check_once(found)
    return _named(found)


def _in_folder(folder: Path, inherited: _Inherited) -> Iterator[Found]:
    """The tracks in a folder and below."""
    if (manifest := folder / MANIFEST).is_file():
        yield from read_manifest(manifest)
        return
    inherited = inherited.entered(folder.resolve())
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    files = [entry for entry in entries if entry.suffix.casefold() in AUDIO_EXTENSIONS and entry.is_file()]
    stem_files = _stem_files(folder, files)
    if stem_files:
        sources = {stem: tuple(map(Source, paths)) for stem, paths in stem_files.items()}
        kind: Kind = "song" if len(sources) == 2 else "vocals" if "vocals" in sources else "accompaniment"
        if kind == "vocals" and inherited.kind == "speech":
            kind = "speech"
        yield Found(folder.resolve().name, sources, kind, folder, split=inherited.split)
    for file in files:
        if file.name.casefold().endswith(_STEM_MP4):
            sources = {
                stem: tuple(Source(file, stream) for stream in streams) for stem, streams in _STEM_MP4_STREAMS.items()
            }
            yield Found(file.name[: -len(_STEM_MP4)], sources, "song", file, split=inherited.split)
        elif inherited.kind and not stem_files:
            stem = "accompaniment" if inherited.kind == "accompaniment" else "vocals"
            yield Found(file.stem, {stem: (Source(file),)}, inherited.kind, file, split=inherited.split)
    for entry in entries:
        if entry.is_dir():
            yield from _in_folder(entry, inherited)


def _stem_files(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """What the files' names say: stem -> the files that add up to it; empty if they say nothing."""
    named: dict[str, Path] = {}
    for file in files:
        stem = file.stem.casefold()
        if stem in STEMS or stem in _BAND:
            if stem in named:
                raise DataError(f"{folder}: {named[stem].name} and {file.name} are both {stem}; keep one")
            named[stem] = file
    if not named.keys() & {*STEMS, "drums"}:  # bass.wav or other.wav may be anything
        return {}
    band = [stem for stem in _BAND if stem in named]
    if "accompaniment" in named:
        band = []  # it has been summed already
    elif band and len(band) < len(_BAND):
        missing = ", ".join(stem for stem in _BAND if stem not in named)
        raise DataError(f"{folder}: {missing} missing beside {', '.join(band)}: the accompaniment would not be whole")
    stems = {stem: [named[stem]] for stem in STEMS if stem in named}
    return stems | {"accompaniment": [named[stem] for stem in band]} if band else stems


def _check_once(tracks: Sequence[Found]) -> None:
    owners: dict[Source, str] = {}
    for track in tracks:
        for source in (source for sources in track.sources.values() for source in sources):
            key = Source(source.path.resolve(), source.stream)
            if key in owners:
                raise DataError(f"{source}: found twice, for {owners[key]} and for {track.name}")
            owners[key] = track.name


def _named(found: Sequence[Found]) -> list[Track]:
    """Unique names: with the extension where one folder has both, else as many parent folders in front as it takes."""
    names = [track.name for track in found]
    folders = [track.named_after.resolve().parent for track in found]
    beside = Counter(zip(names, folders, strict=True))
    for i, track in enumerate(found):
        if beside[names[i], folders[i]] > 1 and track.named_after.stem == track.name:
            names[i] = track.named_after.name
    parents = [list(folder.parts[1:]) for folder in folders]
    while twice := {name for name, count in Counter(names).items() if count > 1}:
        numbers: Counter[str] = Counter()
        for i, name in enumerate(names):
            if name in twice:
                numbers[name] += 1
                # without parents it is the last resort
                names[i] = f"{parents[i].pop()}/{name}" if parents[i] else f"{name} ({numbers[name]})"
    return [
        Track(name, track.sources, track.kind, track.licence, track.group or name, track.split)
        for track, name in zip(found, names, strict=True)
    ]
