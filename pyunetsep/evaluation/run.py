"""Every song through every model: the loop behind `pyunetsep evaluate`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import DeviceError
from ..song_files import StrPath
from . import metrics
from .estimators import Estimator, Model, load_estimator
from .results import Results
from .scoring import Scorer, ScoringOptions

if TYPE_CHECKING:
    from ..data import Track

Progress = Callable[[int, int, str], object]  # steps done, steps in all, what comes next


def evaluate(
    data: Sequence[StrPath],
    models: Sequence[str] | None = None,
    *,
    split: str = "all",
    only: Sequence[str] = (),
    options: ScoringOptions | None = None,
    device: str = "auto",
    offline: bool = False,
    results: StrPath | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    failed: Callable[[str, str], object] | None = None,
) -> dict[str, Any]:
    """Scores models on songs with known stems, a song at a time.

    Args:
        data: folders and manifests, see `pyunetsep.data.find_tracks`.
        models: registered names, files or folders; "oracle" is the ideal ratio mask, "mixture" no separation;
            None is the default model.
        split, only: which of the songs, see `reading.find_songs`.
        options: the metrics, and how they are computed.
        device: of the models, see `pyunetsep.separate`.
        results: a JSON file that scores are kept in, written after each song. What it holds already is not scored
            again; further models may be added to it.
        overwrite: begin a results file anew.
        progress: is told (steps done, steps in all, what comes next).
        failed: is told (song, why) at once of a song that cannot be read or separated; the others are scored.
    Returns:
        The results, as JSON has them: see `results`.
    Raises:
        DataError: no songs. UnknownModelError, ModelUnavailableError, CheckpointError, DeviceError: a model.
        OutputExistsError: `results` are of other options. ImportError: museval or mir_eval is missing.
        Each comes before any work.
    """
    from ..separator import DEFAULT_MODEL
    from .reading import find_songs

    options = options or ScoringOptions()
    models = [DEFAULT_MODEL] if models is None else models
    if isinstance(models, str) or not models or len(set(models)) < len(models):
        raise ValueError(f"models must be a list of different names, got {models!r}")
    versions = {"pyunetsep": __version__, **metrics.library_versions(options.metrics)}
    tracks = find_songs(data, split=split, only=only)
    estimators = {model: load_estimator(model, device=device, exact=options.exact, offline=offline) for model in models}
    selection = {"data": [os.fspath(path) for path in data], "split": split, "only": list(only)}
    store = Results(results, {**selection, **dataclasses.asdict(options)}, versions, overwrite=overwrite)
    for model, estimator in estimators.items():
        used = str(estimator.separator.device) if isinstance(estimator, Model) else "cpu"
        store.model(model, estimator.identity(), used)

    names = [track.name for track in tracks]
    steps = _Steps(len(tracks) * len(models) * (len(options.metrics) + options.whole_songs), progress)
    for i, track in enumerate(tracks):
        steps.within(f"song {i + 1} of {len(tracks)}")
        for name, report in _scored(track, estimators, options, store, steps):
            if isinstance(report, str):
                store.fail(track.name, report)
                if failed is not None:
                    failed(track.name, report)
            else:
                store.add(name, track.name, report)
            store.finish(names)
            store.save()
        steps.reach((i + 1) * steps.total // len(tracks))
    store.finish(names)
    store.save()
    return store.document


def _scored(
    track: Track, estimators: Mapping[str, Estimator], options: ScoringOptions, store: Results, step: _Steps
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(model, its scores of the song, or why there are none) where there are none yet."""
    from torch import OutOfMemoryError

    from .reading import fingerprint, read_song

    try:
        files = fingerprint(track)
        waiting = {name: made for name, made in estimators.items() if not store.scored(name, track.name, files)}
        if not waiting:
            return
        song = read_song(track)
        scorer = Scorer(song, options)
    except (OSError, ValueError, MemoryError) as error:
        yield "", str(error) or "out of memory"
        return
    about = {
        "files": files,
        "duration_s": song.duration_s,
        "sample_rate_hz": song.sample_rate_hz,
        "channels": song.channels,
    }
    for name, estimator in waiting.items():
        step.model = name
        try:
            report: dict[str, Any] | str = {**about, **scorer.score(estimator, step)}
        except (OSError, ValueError, DeviceError) as error:
            report = f"{name}: {error}"
        except (MemoryError, OutOfMemoryError):
            report = f"{name}: out of memory"
        yield name, report


class _Steps:
    """Counts what has been done; is called with what comes next."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, 0, progress
        self.song = self.model = ""

    def within(self, song: str) -> None:
        self.song = song

    def __call__(self, what: str) -> None:
        self.reach(self.done, f"{self.song}, {self.model}: {what}")
        self.done += 1

    def reach(self, done: int, what: str = "") -> None:
        self.done = done
        if self.progress is not None:
            self.progress(done, self.total, what)
