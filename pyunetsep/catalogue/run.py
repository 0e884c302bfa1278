"""From a manifest of songs to a manifest of stems: each song once, whatever dies on the way."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import models
from ..checkpoint import Checkpoint
from ..config import SeparatorConfig
from ..errors import DeviceError, OutputExistsError
from ..separator import DEFAULT_MODEL
from ..song_files import OutputTemplate, Song, StrPath, check_batch
from .cluster import Pool, connected, imported, nodes, quiet_execution, shared_out
from .manifest import (
    NAMING,
    Journal,
    Record,
    checked_format,
    read_results,
    read_songs,
    write_results,
)
from .worker import Ledger, Work, Worker

if TYPE_CHECKING:
    import pyarrow

RESULTS = "manifest.parquet"
CHUNK = 100  # songs that are probably done already, and take milliseconds each, go together
STOP_S = 10.0  # for workers to leave their songs and clean up

Progress = Callable[[int, int, Record], object]  # songs done, songs in all, the latest


def separate(
    manifest: StrPath,
    output_dir: StrPath = "stems",
    results: StrPath | None = None,
    *,
    model: StrPath = DEFAULT_MODEL,
    device: str = "auto",
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    retries: int = 2,
    address: str | None = None,
    config: SeparatorConfig | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> pyarrow.Table:
    """Separates all songs of a manifest, by workers on a Ray cluster or on this machine.

    Every song is done once: stems that are there already are left alone, so that a run which was stopped, by whatever
    means, goes on where it was when it is called again. A song whose worker dies is given to another. A song that
    cannot be separated has its error in its row, and the others go on. All paths must mean the same on all nodes.

    The stems of a song appear under their names once all are complete; the manifest of stems is there once the last
    song is done. Until then a file beside it, `.journal`, has what is known so far.

    Args:
        manifest: a `.csv` or `.parquet` table with a column `path` (from the manifest's folder on) and, if you like,
            `output`: the folder of the song's stems, from `output_dir` on. Other columns pass through; CSV as text.
        output_dir: where stems go: `output_dir`/<song>/<stem>.<extension>, or <output> for <song>.
        results: the manifest of stems, `.csv` or `.parquet`; None is `output_dir`/manifest.parquet. One that is there
            from an earlier run is replaced, and its figures kept for stems that are not made anew.
        model: as for `pyunetsep.separate`; loaded once, here, and handed to the workers.
        device: "auto" (GPUs where the cluster has any), "cpu" or "cuda".
        workers: how many; None is as many as there is room for, one a core or one a GPU.
        gpus_per_worker: for example 0.5, for two workers on each GPU.
        retries: how often a song is tried again whose worker died.
        address: of a Ray cluster. None takes the one that the process is connected to, or that RAY_ADDRESS names, or
            starts one here, which ends with the call.
        config: as for `Separator`.
        offline: never download the model.
        progress: called with (songs done, songs in all, the latest's `Record`).
        options: those of `Separator.separate_file`; with `overwrite` nothing is skipped.
    Returns:
        The manifest of stems, in the order of that of songs, a row each: its columns, and the stems' files and peaks,
        and the other attributes of `Record`.
    Raises:
        DataError: not such a manifest. OutputExistsError: two songs would write the same stems, or `results` is
        something else. ValueError: no such stem, device or number of workers. Each comes before any work.
        ImportError: Ray is missing. ModelUnavailableError, CheckpointError, ...: as for `Separator.from_pretrained`.
        DeviceError: no cluster, no room on it, no GPU, or workers die as soon as they start.
    """
    imported()
    if impossible := {"progress", "cancel", "skip_existing", "template"} & options.keys():
        raise TypeError(f"a catalogue has no option {', '.join(sorted(impossible))}")
    if retries < 0:
        raise ValueError(f"retries must be 0 or more, got {retries}")
    root = Path(os.path.abspath(output_dir))
    if os.fsencode(root).decode(errors="replace") != str(root):
        raise ValueError(f"output_dir must be in UTF-8, as the manifest of stems will name it, got {str(root)!r}")
    manifest = checked_format(Path(manifest), "manifest")
    results = checked_format(Path(results) if results is not None else root / RESULTS, "results")
    if results.resolve() == manifest.resolve():
        raise OutputExistsError(f"{results}: is the manifest of songs; that of stems needs another name")
    checkpoint = models.load(model, offline=offline)
    stems = checkpoint.config.chosen_stems(options.get("stem"))
    table, songs = read_songs(manifest, stems)
    check_batch(songs, root, OutputTemplate(NAMING), stems)

    journal = Journal(results)
    earlier = read_results(results) | journal.read()
    if options.get("overwrite"):
        earlier = {}  # nothing is skipped
    records: dict[int, Record] = {}
    with journal:
        if songs:
            with connected(address):
                pool = shared_out(nodes(), len(songs), device=device, workers=workers, gpus=gpus_per_worker)
                work = Work(
                    output_dir=str(root),
                    options={**options, "skip_existing": not options.get("overwrite", False)},
                    config=config,
                    device=pool.device,
                    threads=pool.cpus,
                    retries=retries,
                    deaths=pool.workers * (retries + 1),
                )
                done = {os.path.dirname(os.path.relpath(stem, root)) for stem in earlier}
                with closing(_separated(songs, done, checkpoint, pool, work)) as separated:
                    for index, record in separated:
                        record.complete_from(earlier)
                        journal.append(record)
                        records[index] = record
                        if progress is not None:
                            progress(len(records), len(songs), record)
    if len(records) < len(songs):
        raise DeviceError(f"Ray lost {len(songs) - len(records)} of {len(songs)} songs; the same call again does them")
    written = write_results(results, table, [records[index] for index in range(len(songs))], stems)
    journal.remove()
    return written


def _separated(
    songs: Sequence[Song], done: set[str], checkpoint: Checkpoint, pool: Pool, work: Work
) -> Generator[tuple[int, Record], None, None]:
    """The songs' numbers and records as they come from the workers; `done` are folders that have stems already.

    Ray Data sees to it that each block of songs comes back once: when a worker's process dies, it starts another and
    gives it what the dead one had not finished. Stems that the dead one did finish are found there, and skipped.

    Raises:
        What kept a worker from loading the model. DeviceError: the cluster is gone.
    """
    ray = imported()
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
    blocks = ray.data.from_arrow(_blocks(songs, done))
    context = blocks.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a song may take hours
    rows = blocks.map_batches(
        Worker,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(ray.put(checkpoint), ledger, work),
        compute=ray.data.ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        with quiet_execution():
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in batch.to_pylist():
                    if row["failure"]:
                        raise pickle.loads(row["failure"])
                    yield row["index"], Record.from_json(row["record"])
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]  # above it is a traceback of Ray's
        raise DeviceError(f"the Ray cluster failed: {reason}") from error
    except BaseException:
        _stop(ledger)
        raise


def _stop(ledger: Any) -> None:
    """Has the workers leave the songs that they are at, so that nothing half-written stays when they are ended."""
    ray = imported()
    deadline_s = time.monotonic() + STOP_S
    with suppress(ray.exceptions.RayError):
        while ray.get(ledger.stop.remote(), timeout=STOP_S) and time.monotonic() < deadline_s:
            time.sleep(0.1)


def _blocks(songs: Sequence[Song], done: set[str]) -> list[pyarrow.Table]:
    """The songs as Ray Data hands them out: one by one, so that a death costs one song, and many of those in one that
    an earlier run has done, so that a large catalogue is soon gone through."""
    import pyarrow

    rows = [{"index": i, "path": song.path, "folder": song.folder} for i, song in enumerate(songs)]
    old = [row for row in rows if row["folder"] in done]
    new = [row for row in rows if row["folder"] not in done]
    chunks = [old[i : i + CHUNK] for i in range(0, len(old), CHUNK)] + [[row] for row in new]
    return [pyarrow.Table.from_pylist(chunk) for chunk in chunks]
