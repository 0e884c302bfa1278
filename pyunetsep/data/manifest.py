"""Manifests: a CSV table with a row a recording."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal, TypeVar

from ..errors import DataError
from .tracks import KINDS, STEMS, Found, Kind, Side, Source

MANIFEST = "manifest.csv"

_SPLITS: dict[str, Side] = {"": "", "train": "train", "validation": "validation", "test": "test"}

_Value = TypeVar("_Value", bound=str)


@dataclass(frozen=True)
class _Row:
    where: str  # "manifest.csv, line 3"
    path: Path
    kind: Kind
    split: Side
    licence: str
    group: str
    song: str

    @property
    def stem(self) -> str:
        return "accompaniment" if self.kind == "accompaniment" else "vocals"


def read_manifest(path: Path) -> list[Found]:
    """The tracks of a manifest, in its order.

    Columns are `path` (from the manifest's folder) and `kind` (vocals, accompaniment, singing, speech); if there,
    `split` (train, validation, test), `licence`, `singer` (or `group`) and `song`; others do not matter. Rows of one
    `song` belong together, several of one stem are summed. Without it, `vocals.*` and `accompaniment.*` that are alone
    in their folder are a song, named after it. All other recordings are loose.

    Raises:
        DataError: not a CSV table with these columns, or nothing in it; a row's kind or split is unknown, its path is
            not there, leads out of the folder or stands there twice, or rows of one song disagree; the message names
            file and row.
    """
    rows = list(_rows(path))
    seen: dict[Path, _Row] = {}
    for row in rows:
        first = seen.setdefault(row.path.resolve(), row)
        if first is not row:
            raise DataError(f"{row.where}: {row.path} stands in {first.where.rpartition(', ')[2]} already")
    folders: dict[Path, list[_Row]] = {}
    for row in rows:
        folders.setdefault(row.path.parent, []).append(row)
    songs: dict[tuple[str, Path], list[_Row]] = {}  # name, and where that name stands
    for row in rows:
        if row.song:
            key = (row.song, path)
        elif _is_pair(folders[row.path.parent]):
            key = (row.path.parent.resolve().name, row.path.parent)
        else:
            key = (row.path.stem, row.path)
        songs.setdefault(key, []).append(row)
    if not songs:
        raise DataError(f"{path}: lists no recordings")
    return [_found(name, named_after, members) for (name, named_after), members in songs.items()]


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, strict=True)
            columns = [(name or "").strip() for name in table.fieldnames or ()]
            if missing := [name for name in ("path", "kind") if name not in columns]:
                lacks = " and ".join(f"no column {name}" for name in missing)
                raise DataError(f"{path}: {lacks}; there are {', '.join(columns) or 'none'}")
            table.fieldnames = columns
            for cells in table:
                values = {name: (cells.get(name) or "").strip() for name in cells if name}
                yield _row(path, f"{path}, line {table.line_num}", values)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a CSV table in UTF-8 ({error})") from None


def _row(manifest: Path, where: str, values: dict[str, str]) -> _Row:
    name, kind, split = values["path"], values["kind"], values.get("split", "")
    if not name:
        raise DataError(f"{where}: no path")
    if os.path.isabs(name) or PureWindowsPath(name).is_absolute() or os.path.normpath(name).split(os.sep)[0] == "..":
        raise DataError(f"{where}: {name} leads out of the manifest's folder")
    file = manifest.parent / name
    if "\0" in name or not file.is_file():
        raise DataError(f"{where}: {name} is not there")
    if name.casefold().endswith(".stem.mp4"):
        raise DataError(f"{where}: {name} holds a whole song; pass its folder")
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {kind!r}, want {', '.join(KINDS)}")
    if split not in _SPLITS:
        raise DataError(f"{where}: split is {split!r}, want train, validation, test or nothing")
    group = values.get("singer", "") or values.get("group", "")
    return _Row(where, file, KINDS[kind], _SPLITS[split], values.get("licence", ""), group, values.get("song", ""))


def _is_pair(rows: Sequence[_Row]) -> bool:
    """Whether these rows, all of a folder, are one song by the names of their files."""
    return (
        sorted(row.stem for row in rows if row.path.stem == row.stem and not row.song)
        == sorted(STEMS)
        == sorted(row.stem for row in rows)
    )


def _found(name: str, named_after: Path, rows: Sequence[_Row]) -> Found:
    """One track of all rows of a song, or of a loose recording's only one."""
    sources = {stem: tuple(Source(row.path) for row in rows if row.stem == stem) for stem in STEMS}
    sources = {stem: files for stem, files in sources.items() if files}
    kind: Kind = "song" if len(sources) == len(STEMS) else rows[0].kind
    licences = dict.fromkeys(row.licence for row in rows)
    return Found(
        name,
        sources,
        kind,
        named_after,
        # what allows less must not hide behind what allows more, nor behind another that says nothing
        licence=" AND ".join(licence or "not stated" for licence in licences) if len(licences) > 1 else rows[0].licence,
        group=_agreed("singer", (row.group for row in rows if row.group), rows),
        split=_agreed("split", (row.split for row in rows), rows),
    )


def _agreed(column: str, values: Iterable[_Value], rows: Sequence[_Row]) -> _Value | Literal[""]:
    """What all rows of a song have in a column."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        raise DataError(f"{rows[-1].where}: rows of one song disagree, {column} is {' and '.join(map(repr, distinct))}")
    return distinct[0] if distinct else ""
