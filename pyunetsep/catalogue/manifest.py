"""A catalogue's tables: the songs to separate, what became of each, and the journal of a run that is not over."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..atomic import replacing
from ..audio.files import file_error
from ..errors import DataError, OutputExistsError
from ..song_files import FileResult, OutputTemplate, Song

if TYPE_CHECKING:
    import pyarrow

FORMATS = (".csv", ".parquet")
NAMING = "{folder}/{stem}.{ext}"  # of stems, as `OutputTemplate` has it


@dataclass
class Record:
    """What became of a song: a row of the manifest of stems, as far as it is about the stems.

    Attributes:
        path: of the song, absolute.
        outputs: {stem: its file, absolute}; none where there is an error.
        skipped: stems that were there already.
        duration_s, elapsed_s: of the song, and of the work on it.
        peaks: {stem: its largest absolute value, of full scale, before clipping}; for stems that were there already,
            what an earlier run wrote down.
        error_type, error: what went wrong, None if nothing did.
        attempts: how many workers it took: all but the last died over it.
        node, worker_pid: where the last of them ran.
    """

    path: str
    outputs: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    duration_s: float | None = None
    elapsed_s: float | None = None
    peaks: dict[str, float] = field(default_factory=dict)
    error_type: str | None = None
    error: str | None = None
    attempts: int | None = None
    node: str | None = None
    worker_pid: int | None = None

    @classmethod
    def of(cls, result: FileResult, **circumstances: Any) -> Record:
        """From what `Separator.separate_files` yields, and the attributes that it does not know."""
        if result.error is not None:
            error = result.error
            return cls(result.path, error_type=type(error).__name__, error=str(error), **circumstances)
        outputs = {stem: str(path) for stem, path in result.outputs.items()}
        return cls(
            result.path,
            outputs,
            skipped=list(result.skipped),
            duration_s=result.duration_s,
            elapsed_s=result.elapsed_s,
            peaks=dict(result.peaks),
            **circumstances,
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Record:
        return cls(**json.loads(line))

    def cells(self, stems: Iterable[str]) -> dict[str, Any]:
        """The columns of `results_schema`."""
        cells: dict[str, Any] = {stem: self.outputs.get(stem) for stem in stems}
        cells |= {_peak(stem): self.peaks.get(stem) for stem in stems}
        cells["skipped"] = " ".join(self.skipped)
        return cells | {name: getattr(self, name) for name in _FIGURES}

    def complete_from(self, earlier: Mapping[str, Record]) -> None:
        """Takes over what earlier records, by stem file, say about stems that were there already."""
        known = {stem: earlier[self.outputs[stem]] for stem in self.skipped if self.outputs[stem] in earlier}
        for stem, record in known.items():
            if stem in record.peaks:
                self.peaks[stem] = record.peaks[stem]
        if known and len(self.skipped) == len(self.outputs):  # nothing was done this time: say who did it, and when
            record = next(iter(known.values()))
            for name in ("elapsed_s", "attempts", "node", "worker_pid"):
                setattr(self, name, getattr(record, name))


# Columns of the manifest of stems beside those of each stem, and how they come back from text.
_FIGURES = {
    "duration_s": float,
    "elapsed_s": float,
    "error_type": str,
    "error": str,
    "attempts": int,
    "node": str,
    "worker_pid": int,
}


def _peak(stem: str) -> str:
    return f"{stem}_peak"


def checked_format(path: Path, argument: str) -> Path:
    """The path, if its extension is that of a table which is read and written."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{argument} must be a .csv or .parquet file, got {str(path)!r}")
    return path


def read_songs(manifest: Path, stems: Sequence[str]) -> tuple[pyarrow.Table, list[Song]]:
    """The table as it is, CSV as text, and its songs in their order.

    Args:
        manifest: has a column `path`, from the manifest's folder on; if there, `output` is the folder of a song's
            stems, in that of all: without it, that is named after the song. Other columns are the user's own.
        stems: that will have columns in the manifest of stems.
    Returns:
        The songs' `folder` is that of their stems.
    Raises:
        DataError: not such a table; the message names file and row.
    """
    table, rows = _read_table(manifest)
    names = table.column_names
    if "path" not in names:
        raise DataError(f"{manifest}: no column path; there are {', '.join(names) or 'none'}")
    if taken := [name for name in results_schema(stems).names if name in names]:
        raise DataError(f"{manifest}: has {', '.join(taken)}, as the manifest of stems will; rename or leave out")
    paths = table["path"].to_pylist()
    outputs = table["output"].to_pylist() if "output" in names else [None] * len(paths)
    return table, [
        _song(where, manifest, path, output) for where, path, output in zip(rows, paths, outputs, strict=True)
    ]


def results_schema(stems: Iterable[str]) -> pyarrow.Schema:
    """The columns that the manifest of stems has beside those of the manifest of songs."""
    import pyarrow

    types = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
    stems = list(stems)
    return pyarrow.schema(
        [(stem, types[str]) for stem in stems]
        + [(_peak(stem), types[float]) for stem in stems]
        + [("skipped", types[str])]
        + [(name, types[kind]) for name, kind in _FIGURES.items()]
    )


def write_results(path: Path, songs: pyarrow.Table, records: Sequence[Record], stems: Sequence[str]) -> pyarrow.Table:
    """Writes the manifest of stems, whole or not at all: the table of songs, each row with its record's columns.

    Raises:
        AudioFileError: it cannot be written.
    """
    import pyarrow

    results = pyarrow.Table.from_pylist([record.cells(stems) for record in records], results_schema(stems))
    table = songs
    for name in results.column_names:
        table = table.append_column(results.schema.field(name), results[name])
    try:
        with replacing(path) as file:
            if path.suffix.lower() == ".parquet":
                import pyarrow.parquet

                pyarrow.parquet.write_table(table, file)
            else:
                text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
                writer = csv.writer(text)
                writer.writerow(table.column_names)
                writer.writerows(row.values() for row in table.to_pylist())
                text.detach()
    except OSError as error:
        raise file_error(str(path), error) from None
    return table


def read_results(path: Path) -> dict[str, Record]:
    """The records of a manifest of stems, by stem file; of none where there is no such file.

    Raises:
        OutputExistsError: the file is something else.
    """
    if not path.exists():
        return {}
    try:
        table, _ = _read_table(path)
        stems = [name for name in table.column_names if _peak(name) in table.column_names]
        if not stems or not {"path", *results_schema(stems).names} <= set(table.column_names):
            raise DataError("other columns")
        records = [_record(row, stems) for row in table.to_pylist()]
    except (ValueError, TypeError, AttributeError):  # DataError among them; or cells of other types
        raise OutputExistsError(
            f"{path}: is there, and is no manifest of stems; choose another name for that"
        ) from None
    return {output: record for record in records for output in record.outputs.values()}


class Journal:
    """A file of JSON lines, beside the manifest of stems, of what a run has done so far; gone when all is done.

    Stems that are there need not be made again whatever happened to the journal: it keeps the figures about them.

    Raises:
        AudioFileError: it cannot be read, or written, and thus the manifest of stems neither.
    """

    def __init__(self, results: Path) -> None:
        self.path = results.with_name(f"{results.name}.journal")

    def read(self) -> dict[str, Record]:
        """The records by stem file."""
        records: dict[str, Record] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return records
        except OSError as error:
            raise file_error(str(self.path), error) from None
        for line in lines:
            try:
                record = Record.from_json(line)
                records |= dict.fromkeys(record.outputs.values(), record)
            except (ValueError, TypeError, AttributeError):  # a line that a killed run left unfinished
                continue
        return records

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")
            print(file=self._file, flush=True)  # what a killed run began to write ends here
        except OSError as error:
            raise file_error(str(self.path), error) from None
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk, of which `append` told
            self._file.close()

    def append(self, record: Record) -> None:
        try:
            print(record.to_json(), file=self._file, flush=True)
        except OSError as error:
            raise file_error(str(self.path), error) from None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _read_table(path: Path) -> tuple[pyarrow.Table, list[str]]:
    """A table of text (CSV), or of what it says (Parquet), and what its rows are called in messages."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            with open(path, "rb") as file:
                table = pyarrow.parquet.read_table(file)
            names = table.column_names
            where = [f"{path}, row {i + 1}" for i in range(table.num_rows)]
        else:
            names, rows, where = _read_csv(path)
            columns = [pyarrow.array([row[i] for row in rows], pyarrow.string()) for i in range(len(names))]
            table = pyarrow.table(columns, names)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not a CSV table in UTF-8 ({error})") from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: is not a Parquet table ({error})") from None
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have one name in {', '.join(names)}")
    return table, where


def _read_csv(path: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """The columns' names, the rows, and what these are called."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        names = [name.strip() for name in next(lines, [])]
        rows, where = [], []
        for row in lines:
            if not row:  # an empty line
                continue
            rows.append(row)
            where.append(f"{path}, line {lines.line_num}")
            if len(row) != len(names):
                raise DataError(f"{where[-1]}: has {len(row)} fields, want {len(names)}")
    return names, rows, where


def _song(where: str, manifest: Path, path: Any, output: Any) -> Song:
    if not path or not isinstance(path, str) or "\0" in path:
        raise DataError(f"{where}: path must be that of a file, got {path!r}")
    file = os.path.abspath(manifest.parent / path)  # as workers need it, whose working directory is another
    if output is None or output == "":
        return Song(file, str(OutputTemplate().path("", file, "stem", "ext").parent))
    if not isinstance(output, str) or "\0" in output:
        raise DataError(f"{where}: output must be a folder, got {output!r}")
    folder = os.path.normpath(output)
    if os.path.isabs(output) or PureWindowsPath(output).is_absolute() or folder.split(os.sep)[0] in (os.curdir, ".."):
        raise DataError(f"{where}: output must be a folder inside that of all stems, got {output!r}")
    return Song(file, folder)


def _record(row: Mapping[str, Any], stems: Sequence[str]) -> Record:
    """The record of a row of a manifest of stems; what came from CSV is text."""
    figures = {name: kind(row[name]) if row[name] not in (None, "") else None for name, kind in _FIGURES.items()}
    return Record(
        row["path"],
        {stem: row[stem] for stem in stems if row[stem]},
        (row["skipped"] or "").split(),
        peaks={stem: float(row[_peak(stem)]) for stem in stems if row[_peak(stem)] not in (None, "")},
        **figures,
    )
