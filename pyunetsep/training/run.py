"""A training run from data to model: what happens in which order, and what is in the run's folder.

config.toml              the configuration
log.jsonl                losses and validation scores, one JSON object a line
checkpoint.safetensors   the state from which the run goes on (see `state`)
model.safetensors        the averaged weights with the best validation score so far: a model like any other
curves.png               losses and scores over the steps
examples/                the first validation song, separated, at each validation
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__, models
from ..atomic import write_atomically
from ..checkpoint import Checkpoint, ModelInfo, compact_state, save_checkpoint
from ..config import shown, to_dict
from ..data import (
    STEMS,
    Recording,
    Split,
    Track,
    find_tracks,
    load_recordings,
    permissive,
    shared_accompaniments,
    split_tracks,
    without_leaks,
)
from ..device import choose_device
from ..errors import CheckpointError, DataError, OutputExistsError, TrainingError
from ..evaluation.validation import validate
from ..separator import Separator
from .config import TrainingConfig, merged, read_toml, to_toml
from .distributed import joined, local_device
from .examples import Examples
from .reports import Log, plot_curves, write_example
from .start import starting_model, starting_networks
from .state import Position, State, load_state, save_state
from .trainer import StepReport, Trainer, check_options, learning_rate

LOG_EVERY = 50  # steps
EXAMPLE_S = 20.0
VALIDATION_S = 1200.0  # of all songs together
CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"

WRITTEN_HERE = "# Written by pyunetsep train; --config takes it.\n"
MAX_INFO = 900  # characters of a text in a model's header, which holds 1000

Progress = Callable[[str, int, int, str], object]  # what is counted, how many are done, how many in all, what to say
Notify = Callable[[str], object]


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    model: Path
    steps: int
    best_step: int  # -1 without validation songs
    best_score_db: float  # mean over stems of the validation songs' NSDR
    elapsed_s: float


def _print_to_stderr(message: str) -> None:
    print(f"pyunetsep: {message}", file=sys.stderr)


def train(
    config: TrainingConfig,
    output: str | Path,
    *,
    device: str | torch.device = "auto",
    cache: str | Path | None = None,
    resume: bool = False,
    strict: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
    notify: Notify = _print_to_stderr,
) -> Result:
    """Trains a model, or goes on with it.

    Args:
        output: the run's folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        cache: where decoded recordings are kept (default: in the user's cache folder).
        resume: go on with the run in `output` where it was stopped; a run that is not there begins.
        strict: a recording that cannot be used stops the run, which otherwise names it and goes on without.
        tensorboard: also write events for TensorBoard into `output`.
        progress: called with (what is counted, done, in all, something to say).
        notify: is given lines of text.
    Raises:
        DataError: the data cannot be used. OutputExistsError: `output` has a run already, and not `resume`.
        CheckpointError: that run is another one, or a model to start from does not fit.
        TrainingError: a loss was no number any more. ValueError: options that do not go together.
        Mistakes in the configuration come before any work on the data.
    """
    config = _located(config)
    folder = Path(os.path.expanduser(output))
    device = local_device(choose_device(device))
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(joined(device))
        if not group.leads:
            progress, notify = None, lambda message: None
        check_options(config, device, group)
        state = _earlier(folder, config, resume)
        start = starting_model(config)
        split = _split(config)
        if group.leads:
            stack.enter_context(_run_folder(folder, config))
        board = _board(folder) if tensorboard and group.leads else None
        cache = Path(os.path.expanduser(cache)) if cache is not None else models.cache_dir() / "training"

        # one process decodes, the others find what it made
        for turn in (True, False):
            if group.leads is turn:
                recordings, validation = _recordings(config, split, cache, strict, notify, progress)
            group.wait()
        digest = _digest(recordings)
        if state is not None and state.data != digest:
            raise CheckpointError(f"{folder / CHECKPOINT}: that run was on other recordings; begin another")
        examples = Examples(recordings, config, device)
        networks = starting_networks(config, start, examples)
        trainer = Trainer(config, examples, device=device, group=group, networks=networks)
        position = Position()
        if state is not None:
            position = state.position
            try:
                trainer.load(state.tensors, position.step, position.loss_scale, position.loss_scale_steps)
            except CheckpointError as error:
                raise CheckpointError(f"{folder / CHECKPOINT}: {error}") from None
        origin = None if start is None else start.info
        run = _Run(config, folder, trainer, digest, validation, position, origin, board, progress, notify)
        return run.go()


class _Run:
    """Steps, and what is done between them."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        trainer: Trainer,
        digest: str,
        validation: Sequence[Recording],
        position: Position,
        origin: ModelInfo | None,
        board: Any,
        progress: Progress | None,
        notify: Notify,
    ) -> None:
        self.config, self.folder, self.trainer, self.digest = config, folder, trainer, digest
        self.validation, self.position, self.origin, self.board = validation, position, origin, board
        self.progress, self.notify = progress, notify
        self.leads = trainer.group.leads
        self.started = time.monotonic() - position.elapsed_s
        self.pending: list[StepReport] = []  # steps whose losses were not looked at yet
        self.said = ""
        self.log = Log(folder / "log.jsonl", trainer.done) if self.leads else None

    def go(self) -> Result:
        config, trainer = self.config, self.trainer
        while trainer.done < config.steps:
            self.pending.append(trainer.step())
            step = trainer.done
            last = step == config.steps
            if last or step % LOG_EVERY == 0:
                self._look()
            if last or step % config.validate_every == 0:
                self._validate()
            if last or step % config.save_every == 0:
                self._look()  # nothing that is no number gets into a checkpoint
                self._save()
            if self.progress is not None:
                self.progress("steps", step, config.steps, self.said)
        if self.board is not None:
            self.board.close()
        position = self.position
        return Result(self.folder / MODEL, trainer.done, position.best_step, position.best_score_db, self._elapsed_s())

    def _look(self) -> None:
        """Waits for the losses since the last time, and writes them down."""
        if not self.pending:
            return
        losses = torch.stack([report.losses for report in self.pending]).cpu()
        norms = torch.stack([report.gradient_norms for report in self.pending]).cpu()
        first = self.trainer.done - len(self.pending)
        self.pending = []
        sound = losses.isfinite().all(1)
        if self.config.precision != "float16":  # whose loss scale is found by gradients that are too large
            sound &= norms.isfinite().all(1)
        if not sound.all():
            wrong = int((~sound).nonzero()[0])
            self._give_up(first + wrong, losses[wrong], norms[wrong])
        stems = list(self.trainer.networks)
        mean = dict(zip(stems, losses.mean(0).tolist(), strict=True))
        self.said = ", ".join(f"{stem} {loss:.5f}" for stem, loss in mean.items())
        self._record(
            loss=mean,
            gradient_norm=dict(zip(stems, norms.nanmedian(0).values.tolist(), strict=True)),
            learning_rate=learning_rate(self.config, self.trainer.done - 1),
        )

    def _give_up(self, step: int, losses: Tensor, norms: Tensor) -> None:
        """A loss, or a gradient, is no number: says of what."""
        examples = self.trainer.examples
        indices = self.trainer.group.share(self.config.batch)
        batch = examples.batch(step, indices)
        report = self.folder / f"not-a-number-{step}-{self.trainer.group.rank}.json"
        entries = [
            {
                "index": draw.index,
                "sources": examples.describe(draw),
                "finite": bool(mixture.isfinite().all()),
                "largest_magnitude": float(mixture.abs().max()),
                "drawn": {stem: dataclasses.asdict(drawn) for stem, drawn in draw.stems.items()},
            }
            for draw, mixture in zip(batch.draws, batch.mixture, strict=True)
        ]
        found = {"losses": [*map(str, losses.tolist())], "gradient_norms": [*map(str, norms.tolist())]}
        report.write_text(json.dumps({"step": step, **found, "examples": entries}, indent=1), encoding="utf-8")
        what = "gradient" if losses.isfinite().all() else "loss"
        raise TrainingError(
            f"{self.folder}: the {what} of step {step} is not a number; {report} has its examples. The checkpoint is "
            "that of a step before: a smaller learning_rate, clip_norm = 1 or precision = 'float32' may help"
        )

    def _validate(self) -> None:
        """Scores the averaged networks on the validation songs, and keeps the best."""
        step, config = self.trainer.done, self.config
        if self.leads:
            checkpoint = self.trainer.checkpoint(self._info())
            if self.validation:
                separator = Separator(checkpoint, device=self.trainer.device)
                rate_hz = config.model.spectrogram.sample_rate_hz
                scores = validate(separator, _waves(self.validation, rate_hz), rate_hz)
                score = float(np.mean(list(scores.values())))
                self._record(nsdr_db=scores)
                first = self.position.best_step < 0
                # songs of which no piece has both stems have no score: the latest weights then are as good as any
                if first or not score <= self.position.best_score_db:
                    best_db = score if math.isfinite(score) else self.position.best_score_db
                    self.position = dataclasses.replace(self.position, best_step=step, best_score_db=best_db)
                    self._save_model(checkpoint)
                mixture = next(_mixtures(self.validation, rate_hz))
                write_example(separator, mixture, self.folder / "examples" / f"step-{step:07d}")
            else:
                self._save_model(checkpoint)
            self._draw()
        self.trainer.group.wait()

    def _draw(self) -> None:
        assert self.log is not None
        try:
            plot_curves(self.log.events, self.folder / "curves.png")
        except ImportError:
            if self.position.best_step == self.trainer.done:
                self.notify("no curves.png without matplotlib: pip install 'pyunetsep[plot]'")

    def _save_model(self, checkpoint: Checkpoint) -> None:
        states = {stem: compact_state(network) for stem, network in checkpoint.networks.items()}
        save_checkpoint(self.folder / MODEL, checkpoint.config, states, checkpoint.info)

    def _save(self) -> None:
        scale, steps = self.trainer.loss_scale()
        self.position = dataclasses.replace(
            self.position,
            step=self.trainer.done,
            elapsed_s=self._elapsed_s(),
            loss_scale=scale,
            loss_scale_steps=steps,
        )
        if self.leads:
            state = State(self.config, self.digest, self.position, self.trainer.tensors())
            save_state(self.folder / CHECKPOINT, state)
        self.trainer.group.wait()

    def _record(self, **event: Any) -> None:
        if self.log is not None:
            self.log.write(step=self.trainer.done, elapsed_s=round(self._elapsed_s(), 1), **event)
        if self.board is not None:
            for name, value in event.items():
                values = value if isinstance(value, dict) else {"all": value}
                for key, number in values.items():
                    self.board.add_scalar(f"{name}/{key}", number, self.trainer.done)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def _info(self) -> ModelInfo:
        config = self.config
        licence = "not stated; it learnt from data " + (
            "that allows commercial use" if config.licence == "permissive" else "of the licences that these have"
        )
        names = sorted({recording.track.name for recording in self.trainer.examples.recordings})
        data = f"{len(names)} recordings: {', '.join(names)}"
        source = (
            f"trained with pyunetsep {__version__}: preset {config.preset}, step {self.trainer.done} of "
            f"{config.steps}, batch {config.batch}, seed {config.seed}"
        )
        if self.origin is not None:
            licence += f", and began with a model of licence {self.origin.licence}"
            data = f"{self.origin.training_data}; then {data}"
            source += f"; began with {self.origin.name} ({config.init_by}), {self.origin.source}"
        return ModelInfo(
            name=_fitting(self.folder.resolve().name),
            licence=_fitting(licence),
            training_data=_fitting(data),
            source=_fitting(source),
            source_sha256="",
        )


def _fitting(text: str) -> str:
    """Text as a model's header may have it: printable, and not too long."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_INFO else text[: MAX_INFO - 3] + "..."


def _located(config: TrainingConfig) -> TrainingConfig:
    """The configuration with paths that hold from everywhere."""

    def absolute(path: str) -> str:
        return str(Path(os.path.expanduser(path)).absolute())

    init = absolute(config.init) if os.path.exists(os.path.expanduser(config.init)) else config.init
    return dataclasses.replace(config, data=tuple(map(absolute, config.data)), init=init)


@contextlib.contextmanager
def _run_folder(folder: Path, config: TrainingConfig) -> Iterator[None]:
    """Makes the run's folder, keeps other runs out of it while this one goes on, and writes its configuration.

    Raises:
        OutputExistsError: another run is at work there, or config.toml is somebody else's.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.toml"
    text = WRITTEN_HERE + to_toml(config)
    if file.exists() and not (written := file.read_text(encoding="utf-8")).startswith(WRITTEN_HERE):
        if merged(read_toml(file)) != config:
            raise OutputExistsError(f"{file}: is not that of a run; choose another --output")
        text = written  # what --config took may stay as it is
    with _locked(folder):
        for leftover in folder.glob(f".{CHECKPOINT}.*"):  # of a killed run: large, and of no use
            leftover.unlink(missing_ok=True)
        write_atomically(file, text.encode())
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder, for as long as this process lives at most."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(f"{folder}: another process trains there right now") from None
        yield
    finally:
        os.close(descriptor)


def _earlier(folder: Path, config: TrainingConfig, resume: bool) -> State | None:
    """The state of the run in the folder, if there is one, and it is this one."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    if not resume:
        raise OutputExistsError(f"{folder}: has a run already; --resume goes on with it, or choose another --output")
    state = load_state(path)
    if state.config != config:
        old, new = to_dict(state.config), to_dict(config)
        differing = [f"{key} was {shown(old[key])}, is {shown(new[key])}" for key in old if old[key] != new[key]]
        raise CheckpointError(f"{path}: that run has another configuration: {'; '.join(differing)}")
    return state


def _split(config: TrainingConfig) -> Split:
    if not config.data:
        raise DataError("data: name a folder of stems, a MUSDB18 folder or a CSV manifest (--data)")
    split = split_tracks(find_tracks(config.data), validation=config.validation, test=config.test)
    if config.licence == "permissive":  # of what is learnt from; what is held out only measures
        split = dataclasses.replace(split, train=tuple(permissive(split.train)))
        if not split.train:
            raise DataError("data: no recording states a licence that is known to allow commercial use")
    return split


def _recordings(
    config: TrainingConfig, split: Split, cache: Path, strict: bool, notify: Notify, progress: Progress | None
) -> tuple[list[Recording], list[Recording]]:
    """Recordings to train on, and songs to validate on; no accompaniment is in both, or in both of train and test."""

    def count(what: str) -> Callable[[int, int], object] | None:
        return None if progress is None else lambda done, total: progress(what, done, total, "")

    def load(tracks: Sequence[Track]) -> list[Recording]:
        model = config.model
        return load_recordings(
            tracks,
            sample_rate_hz=model.spectrogram.sample_rate_hz,
            channels=model.unet.input_channels,
            cache=cache,
            strict=strict,
            notify=notify,
            progress=count("recordings"),
        )

    if not split.train:
        raise DataError("data: nothing is left to train on, all is held out")
    recordings = load(split.train)
    songs: dict[str, list[Recording]] = {}
    for side, tracks in (("validation", split.validation), ("test", split.test)):
        whole = [track for track in tracks if track.kind == "song"]
        songs[side] = load(whole) if whole else []
    held_out = [*songs["validation"], *songs["test"]]
    leaks = shared_accompaniments(held_out, recordings, progress=count("pieces compared"), cache=cache)
    for train_track, held_out_track, score in leaks:
        notify(f"{train_track} shares its accompaniment with {held_out_track} ({score:.2f}): trained without it")
    recordings = without_leaks(recordings, leaks)
    duration_min = sum(recording.duration_s for recording in recordings) / 60
    notify(
        f"recordings to train on: {len(recordings)} ({duration_min:.0f} min), songs to validate on: "
        f"{len(songs['validation'])}, held out: {len(songs['test'])}"
    )
    return recordings, songs["validation"]


def _digest(recordings: Sequence[Recording]) -> str:
    """Of what examples are drawn from: names, kinds and lengths."""
    digest = hashlib.sha256()
    for recording in recordings:
        stems = sorted(recording.waves)
        digest.update(f"{recording.track.name}\n{recording.track.kind}\n{stems}\n{recording.samples}\n".encode())
    return digest.hexdigest()


def _waves(songs: Sequence[Recording], rate_hz: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The middles of validation songs, as many seconds of each as there is time for."""
    samples = round(max(VALIDATION_S / len(songs), EXAMPLE_S) * rate_hz)
    for song in songs:
        start = max(0, (song.samples - samples) // 2)
        vocals, accompaniment = (np.asarray(song.waves[stem][:, start : start + samples], np.float32) for stem in STEMS)
        yield vocals, accompaniment


def _mixtures(songs: Sequence[Recording], rate_hz: int) -> Iterator[np.ndarray]:
    for vocals, accompaniment in _waves(songs, rate_hz):
        yield (vocals + accompaniment)[:, : round(EXAMPLE_S * rate_hz)]


def _board(folder: Path) -> Any:
    """What writes events for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboard: pip install 'pyunetsep[tensorboard]'") from error
    return SummaryWriter(str(folder / "tensorboard"))
