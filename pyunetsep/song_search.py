"""Which songs are meant: files, all of a folder, or what a pattern finds."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .audio import AUDIO_EXTENSIONS
from .errors import AudioFileError, OutputExistsError
from .song_files import Song, StrPath


def find_songs(paths: Iterable[StrPath], *, recursive: bool = False, besides: StrPath | None = None) -> list[Song]:
    """The songs of files, folders and patterns, each group sorted by name.

    Args:
        paths: files, which are taken as they are; folders, of which all files that are named like audio are taken, but
            hidden ones; patterns as of a shell (`*`, `?`, `[...]`, and `**` for folders at any depth).
        recursive: also look in the folders below, but for links to folders, which may lead round in a circle.
        besides: a folder in which nothing is looked for, that of the stems, unless the search begins there.
    Raises:
        AudioFileError: a folder or a pattern has no audio file.
        OutputExistsError: a `recursive` search would begin in `besides`.
    """
    excluded = None if besides is None else Path(besides).resolve()
    songs: list[Song] = []
    for path in [os.fspath(path) for path in paths]:
        if os.path.isdir(path):
            if recursive and excluded == Path(path).resolve():
                raise OutputExistsError(
                    f"{path}: is the folder of the stems too, and the next search would take them for songs; "
                    "write them elsewhere, or below it"
                )
            found = list(_in_folder(Path(path), recursive, excluded))
            if not found:
                hint = "" if recursive else "; --recursive looks in the folders below"
                raise AudioFileError(f"{path}: no audio files in this folder{hint}")
            songs += found
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = sorted(match for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
            if excluded is not None and not _fixed_part(path).is_relative_to(excluded):
                matches = [match for match in matches if excluded not in Path(match).resolve().parents]
            if not matches:
                raise AudioFileError(f"{path}: no file matches this pattern")
            songs += [Song(match) for match in matches]
        else:
            songs.append(Song(path))
    return songs


def _fixed_part(pattern: str) -> Path:
    """The folder that a pattern begins in."""
    parts = Path(pattern).parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts)).resolve()


def _in_folder(top: Path, recursive: bool, excluded: Path | None) -> Iterator[Song]:
    for folder, below, files in os.walk(top):
        here = Path(folder)
        below[:] = sorted(
            name for name in below if recursive and not name.startswith(".") and (here / name).resolve() != excluded
        )
        for name in sorted(files):
            named_so = not name.startswith(".") and Path(name).suffix.casefold() in AUDIO_EXTENSIONS
            # a link that leads nowhere is an error to be told; a pipe would be waited for
            if named_so and ((here / name).is_file() or not (here / name).exists()):
                yield Song(str(here / name), str(here.relative_to(top)))
