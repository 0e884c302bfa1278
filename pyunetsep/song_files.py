"""Files around the separation: where stems go, and that none is half-written, overwritten unasked or lost."""

from __future__ import annotations

import errno
import functools
import os
import string
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import npy
from .audio import AudioFormat, AudioReader, AudioWriter, PipeWriter, Wave, extension
from .audio.files import file_error
from .errors import AudioFileError, ClippingWarning, OutputExistsError

StrPath = str | os.PathLike[str]


@dataclass
class FileResult:
    """What became of one file."""

    path: str
    outputs: dict[str, Path] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # stems that were there already
    duration_s: float = 0.0
    elapsed_s: float = 0.0
    peaks: dict[str, float] = field(default_factory=dict)  # of full scale, before clipping
    error: Exception | None = None


@dataclass(frozen=True)
class Song(os.PathLike[str]):
    """A file to separate, and where it lies within the folder that was searched for songs."""

    path: str
    folder: str = "."

    def __post_init__(self) -> None:
        if not self.folder or os.path.isabs(self.folder) or ".." in Path(self.folder).parts:
            raise ValueError(f"folder: got {self.folder!r}, want one below the folder that was searched")

    def __fspath__(self) -> str:
        return self.path


def song_name(path: StrPath) -> str:
    """The file's name without its extension; never one that leads out of a folder."""
    name = Path(path).stem
    return name if name.strip(".") else "_"


class OutputTemplate:
    """Where stems go within the output folder, such as "{folder}/{name}/{stem}.{ext}".

    Fields: `folder` of the song within the folder that was searched ("." for songs that were named), `name` of its file
    without extension, `stem`, and the stem's `ext`ension.
    """

    DEFAULT = "{folder}/{name}/{stem}.{ext}"
    _FIELDS = ("folder", "name", "stem", "ext")

    def __init__(self, text: str = DEFAULT) -> None:
        """
        Raises:
            ValueError: it has other fields, lacks {stem} or {ext}, or leads out of the output folder.
        """
        self.text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"template: got {text!r}: {error}") from None
        fields = [field for _, field, _, _ in parts if field is not None]
        if any(spec or conversion for _, _, spec, conversion in parts) or not set(fields) <= set(self._FIELDS):
            raise ValueError(f"template: got {text!r}, want no other fields than {{{'}, {'.join(self._FIELDS)}}}")
        if not {"stem", "ext"} <= set(fields):
            raise ValueError(f"template: got {text!r}, want {{stem}} and {{ext}} in it, or stems overwrite each other")
        sample = Path(text.format(folder=".", name="_", stem="_", ext="_"))
        if sample.is_absolute() or ".." in sample.parts:
            raise ValueError(f"template: got {text!r}, want a path within the output folder")

    def path(self, output_dir: StrPath, song: StrPath, stem: str, ext: str) -> Path:
        """Of a stem; `ext` is the extension without its dot."""
        folder = song.folder if isinstance(song, Song) else "."
        return Path(output_dir) / self.text.format(folder=folder, name=song_name(song), stem=stem, ext=ext)

    def paths(self, output_dir: StrPath, song: StrPath, stems: Iterable[str], form: AudioFormat) -> dict[str, Path]:
        return {stem: self.path(output_dir, song, stem, extension(form).lstrip(".")) for stem in stems}


def check_batch(songs: Sequence[StrPath], output_dir: StrPath, template: OutputTemplate, stems: Sequence[str]) -> None:
    """Refuses songs of one batch whose stems would overwrite each other, or another song of the batch.

    Extensions count for nothing here: what a stem's will be is known only when its song has been opened.
    """
    owners: dict[Path, str] = {}
    for song in songs:
        for stem in stems:
            path = template.path(output_dir, song, stem, _ANY)
            if (owner := owners.setdefault(_resolved(path), os.fspath(song))) != os.fspath(song):
                raise _conflict(f"{os.fspath(song)} and {owner} would both write to {_shown(path)}")
    named = [os.path.realpath(song) for song in songs]
    if len(set(named)) < len(named):
        twice = next(path for i, path in enumerate(named) if path in named[:i])
        raise _conflict(f"{twice} was given twice")
    for song in songs:
        for path in (Path(song), Path(os.path.realpath(song))):  # what a link leads to must stay, too
            other = owners.get(_resolved(path.parent / f"{song_name(path)}.{_ANY}"))
            if other is not None and other != os.fspath(song):
                raise _conflict(f"{os.fspath(song)} lies where a stem of {other} would be written")


_ANY = "*"  # an extension that no file has


def _resolved(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _shown(path: Path) -> str:
    return str(path).removesuffix(f".{_ANY}")


def _conflict(problem: str) -> OutputExistsError:
    return OutputExistsError(f"{problem}; separate them into different folders")


def check_outputs(path: StrPath, outputs: Mapping[str, Path], *, overwrite: bool, skip_existing: bool) -> list[str]:
    """The stems that are there already and shall stay."""
    existing = [stem for stem, output in outputs.items() if output.exists()]
    for stem in existing:
        if os.path.samefile(path, outputs[stem]):
            raise OutputExistsError(f"{os.fspath(path)}: is the file that a stem would be written to")
    if existing and not (overwrite or skip_existing):
        raise OutputExistsError(f"{outputs[existing[0]]}: exists already; see overwrite and skip_existing")
    return existing if skip_existing else []


def write_stems(
    blocks: Iterable[Mapping[str, Wave]],
    outputs: Mapping[str, Path],
    song: AudioReader,
    form: AudioFormat,
    *,
    overwrite: bool,
) -> dict[str, float]:
    """Writes every stem's blocks; the files get their names once all are complete. Returns the stems' peaks."""
    with ExitStack() as stack:
        for folder in {path.parent for path in outputs.values()}:
            stack.enter_context(_folder(folder))
        begun = functools.partial(
            AudioWriter,
            sample_rate_hz=song.sample_rate_hz,
            channels=song.channels,
            samples=song.samples,
            format=form,
            overwrite=overwrite,
        )
        writers = {stem: stack.enter_context(_in_its_folder(path, begun)) for stem, path in outputs.items()}
        for block in blocks:
            for stem, wave in block.items():
                writers[stem].write(wave)
        for writer in writers.values():
            writer.finish()
        for writer in writers.values():
            writer.commit()
    for stem, writer in writers.items():
        warn_of_clipping(writer, f"{outputs[stem]}: {stem}")
    return {stem: writer.peak for stem, writer in writers.items()}


def warn_of_clipping(writer: AudioWriter | PipeWriter, name: str) -> None:
    """Warns if samples were clipped; `name` is the file's and the stem's."""
    if writer.clipped_samples:
        warnings.warn(
            f"{name} peaks at {writer.peak:.4f} of full scale, samples clipped: {writer.clipped_samples}; "
            "--rescale turns all stems down together, --subtype FLOAT keeps them",
            ClippingWarning,
            stacklevel=4,
        )


_FOLDER_TRIES = 100


def _in_its_folder(path: Path, begun: Callable[[Path], AudioWriter]) -> AudioWriter:
    """A writer, and its folder.

    Until there is a file in the folder, a song that fails, here or in another process, may take it away as its own.
    """
    for tries_left in reversed(range(_FOLDER_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # the folder above it, or the folder that was there already, was taken away
            gone = isinstance(error, FileNotFoundError) or not os.path.lexists(path.parent)
            if not gone or not tries_left:
                raise file_error(f"{path.parent}: the output folder cannot be made", error) from None
            continue
        try:
            return begun(path)
        except AudioFileError as problem:
            if problem.errno != errno.ENOENT or not tries_left:
                raise
    raise AssertionError("returned or raised before")


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Removes the folder again, and those above it, if it was new and stays empty."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):  # not empty: it holds the stems
                parent.rmdir()


def rescaled(blocks: Iterable[Mapping[str, Wave]]) -> Iterator[dict[str, Wave]]:
    """The same blocks, turned down by one factor so that the loudest fits full scale; they wait in a temporary file."""
    peak, waiting = 1.0, []
    with tempfile.TemporaryFile(prefix="pyunetsep-") as spool:
        for block in blocks:
            peak = max([peak, *(float(np.abs(wave).max(initial=0.0)) for wave in block.values())])
            waiting.append(list(block))
            try:
                for wave in block.values():
                    np.save(spool, wave, allow_pickle=False)
            except OSError as error:
                raise file_error(f"temporary file in {tempfile.gettempdir()}", error) from None
        spool.seek(0)
        for stems in waiting:
            yield {stem: npy.load(spool) / np.float32(peak) for stem in stems}
