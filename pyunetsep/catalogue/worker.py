"""What runs on the cluster: workers, each a process with a model, and the ledger that they share."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..config import SeparatorConfig
from ..errors import Cancelled, DeviceError, OutputExistsError
from ..separator import Separator
from ..song_files import FileResult, Song
from .manifest import NAMING, Record

if TYPE_CHECKING:
    import pyarrow

LOOK_UP_S = 1.0


@dataclass(frozen=True)
class Work:
    """What all workers are told."""

    output_dir: str
    options: Mapping[str, Any]  # of `Separator.separate_file`
    config: SeparatorConfig | None
    device: str
    threads: int
    retries: int  # of a song whose worker died
    deaths: int  # of workers in a row that never came to work, before that is given up


class Ledger:
    """An actor that outlives the workers, and knows over which songs they died, and whether they shall stop.

    Ray starts dead workers anew and gives them their songs again, for ever, also where it is the song or the model that
    kills them; and when it ends a pool, it kills workers without a chance to clean up.
    """

    def __init__(self) -> None:
        self._at_work: set[int] = set()  # begun and not ended
        self._deaths: Counter[int] = Counter()
        self._starts = 0
        self._stopped = False

    def start(self) -> int:
        """Counts a worker's start; returns how many there were since one last came to work."""
        self._starts += 1
        return self._starts

    def begin(self, song: int) -> int:
        """Returns which attempt at the song this is, 0 where none shall be made any more.

        Whoever began it before and did not end it has died over it. A song that comes again because a worker died over
        the next one, before both went back, counts for nothing.
        """
        if self._stopped:
            return 0
        self._starts = 0
        if song in self._at_work:
            self._deaths[song] += 1
        self._at_work.add(song)
        return self._deaths[song] + 1

    def end(self, song: int) -> None:
        self._at_work.discard(song)

    def stop(self) -> int:
        """Has workers stop; returns how many songs are still at work, those of dead workers among them."""
        self._stopped = True
        return len(self._at_work)

    def stopped(self) -> bool:
        return self._stopped


class Worker:
    """A model in a process of its own, that takes songs as they come; Ray Data makes as many as were asked for."""

    def __init__(self, checkpoint: Any, ledger: Any, work: Work) -> None:
        """Loads the model; where that fails, the first songs bring back why: a worker that raises now tells nobody but
        Ray's logs.

        Args:
            checkpoint: reference to a Checkpoint. ledger: handle of the Ledger.
        """
        import ray

        self.ledger, self.work = ledger, work
        self.cancel, self.asked_s = threading.Event(), 0.0
        self.failure: Exception | None = None
        try:
            starts = ray.get(ledger.start.remote())
            if starts > work.deaths:
                raise DeviceError(
                    f"{starts - 1} workers died one after the other while they loaded the model; with fewer workers "
                    "each has more memory"
                )
            torch.set_num_threads(work.threads)
            self.separator = Separator(ray.get(checkpoint), device=work.device, config=work.config)
        except Exception as error:
            self.failure = error

    def __call__(self, songs: pyarrow.Table) -> pyarrow.Table:
        """Separates songs: columns `index`, `path`, `folder` in; `index`, `record` (JSON), `failure` (pickle) out."""
        import pyarrow

        failed = self.failure is not None
        made = {
            "index": songs["index"],
            "record": ["" if failed else self._separate(**row).to_json() for row in songs.to_pylist()],
            "failure": [pickle.dumps(self.failure) if failed else b""] * len(songs),
        }
        return pyarrow.table(made)

    def _separate(self, index: int, path: str, folder: str) -> Record:
        import ray

        attempts = ray.get(self.ledger.begin.remote(index))
        circumstances = {"attempts": attempts, "node": socket.gethostname(), "worker_pid": os.getpid()}
        if not attempts:
            return Record.of(FileResult(path, error=Cancelled(f"{path}: cancelled")), **circumstances)
        if attempts > self.work.retries + 1:
            self.ledger.end.remote(index)
            circumstances["attempts"] -= 1  # this is none
            why = f"{path}: {attempts - 1} workers died while they separated it; out of memory?"
            return Record(path, error_type="WorkerDied", error=why, **circumstances)
        result = self._result(Song(path, folder))
        if isinstance(result.error, OutputExistsError) and self.work.options["skip_existing"]:
            result = self._result(Song(path, folder))  # a worker that was believed dead has just finished the song
        self.ledger.end.remote(index)
        return Record.of(result, **circumstances)

    def _result(self, song: Song) -> FileResult:
        options = {**self.work.options, "template": NAMING, "progress": self._look_up, "cancel": self.cancel}
        try:
            (result,) = self.separator.separate_files([song], self.work.output_dir, **options)
            return result
        except Exception as error:  # one song's trouble is not that of the others, whatever it is
            return FileResult(song.path, error=error)

    def _look_up(self, *_: float) -> None:
        """Asks now and then whether to stop."""
        import ray

        if time.monotonic() > self.asked_s + LOOK_UP_S:
            self.asked_s = time.monotonic()
            if ray.get(self.ledger.stopped.remote()):
                self.cancel.set()
