"""Files around the separation: where stems go, and that none is half-written, overwritten unasked or lost."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .audio import AudioFormat, AudioReader, AudioWriter, Wave, extension
from .audio.files import file_error
from .errors import ClippingWarning, OutputExistsError

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


def song_folder(output_dir: StrPath, path: StrPath) -> Path:
    """`output_dir`/<name of the song without its extension>; never another folder than one inside."""
    name = Path(path).stem
    return Path(output_dir) / (name if name.strip(".") else "_")


def stem_paths(output_dir: StrPath, path: StrPath, stems: Iterable[str], form: AudioFormat) -> dict[str, Path]:
    return {stem: song_folder(output_dir, path) / (stem + extension(form)) for stem in stems}


def check_batch(paths: Sequence[StrPath], output_dir: StrPath) -> None:
    """Refuses songs of one batch whose stems would overwrite each other, or another song of the batch."""
    owners: dict[Path, str] = {}
    for path in paths:
        folder = song_folder(output_dir, path).resolve()
        if folder in owners:
            raise OutputExistsError(
                f"{os.fspath(path)} and {owners[folder]} would both write to {song_folder(output_dir, path)}; "
                "separate them into different folders"
            )
        owners[folder] = os.fspath(path)
    for path in paths:
        owner = owners.get(Path(path).resolve().parent)
        if owner not in (None, os.fspath(path)):
            raise OutputExistsError(
                f"{os.fspath(path)} lies where the stems of {owner} would be written; "
                "separate them into different folders"
            )


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
        writers = {
            stem: stack.enter_context(
                AudioWriter(
                    path,
                    sample_rate_hz=song.sample_rate_hz,
                    channels=song.channels,
                    samples=song.samples,
                    format=form,
                    overwrite=overwrite,
                )
            )
            for stem, path in outputs.items()
        }
        for block in blocks:
            for stem, wave in block.items():
                writers[stem].write(wave)
        for writer in writers.values():
            writer.finish()
        for writer in writers.values():
            writer.commit()
    for stem, writer in writers.items():
        if writer.clipped_samples:
            warnings.warn(
                f"{outputs[stem]}: {stem} peaks at {writer.peak:.4f} of full scale, samples clipped: "
                f"{writer.clipped_samples}; --rescale turns all stems down together, --subtype FLOAT keeps them",
                ClippingWarning,
                stacklevel=3,
            )
    return {stem: writer.peak for stem, writer in writers.items()}


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the folder, and removes it again if it was new and stays empty."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(f"{path}: the output folder cannot be made", error) from None
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
            yield {stem: np.load(spool, allow_pickle=False) / np.float32(peak) for stem in stems}
