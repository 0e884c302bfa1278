"""The front door: a song as an array or a file in, its stems out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from . import models
from .arrays import MAX_CHANNELS, ArrayLayout
from .audio import AudioFormat, AudioReader, AudioWriter, Resampler, extension, output_format
from .checkpoint import Checkpoint
from .config import EXACT, SeparatorConfig
from .device import choose_device
from .errors import Cancelled, ClippingWarning, InvalidAudioError, OutputExistsError
from .stream import StemStream, Wave
from .unmixer import PeakMeter, Unmixer

DEFAULT_MODEL = "spleeter-2stems"
BLOCK_S = 5.0  # what is read, and reported as progress, at a time

Progress = Callable[[float, float], object]  # seconds done, seconds in all
Stem = str | Sequence[str] | None


def separate(
    audio: Any,
    sample_rate: int = 44_100,
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    device: str = "auto",
    offline: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Separates a song into its stems.

    The model is loaded once and kept for the next call.

    Args:
        audio: NumPy array (samples,) or (samples, channels), or torch tensor (samples,) or (..., channels, samples);
            int16, int32 or floating, full scale 1.0. Never changed.
        sample_rate: of `audio`, in Hz; any rate.
        model: a registered name, a `.safetensors` file or a folder: see `pyunetsep models list`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        offline: never download the model.
        options: those of `Separator.__call__`: stem, exact, sanitize, rescale, progress, cancel.
    Returns:
        {stem's name: an array like `audio`}.
    Raises:
        TypeError, ValueError: `audio` or an option is not what it should be. ModelUnavailableError: no weights.
    """
    name = os.fspath(model)
    written = os.stat(name).st_mtime_ns if os.path.exists(name) else None  # a file that was trained anew is read anew
    return _loaded(name, written, str(device), offline)(audio, sample_rate, **options)


@functools.lru_cache(maxsize=2)
def _loaded(model: str, _written: int | None, device: str, offline: bool) -> Separator:
    return Separator.from_pretrained(model, device=device, offline=offline)


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


class Separator:
    """A model on a device. Calls share nothing that changes, so threads may share a Separator."""

    def __init__(
        self, checkpoint: Checkpoint, *, device: str | torch.device = "auto", config: SeparatorConfig | None = None
    ) -> None:
        self.model, self.info = checkpoint.config, checkpoint.info
        self.device = choose_device(device)
        self.config = config or SeparatorConfig()
        self.networks = {
            stem: copy.deepcopy(network).to(self.device).eval().requires_grad_(False)
            for stem, network in checkpoint.networks.items()
        }
        for network in self.networks.values():  # the layout that convolutions are fastest in, on CPU and GPU
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        config: SeparatorConfig | None = None,
        offline: bool = False,
    ) -> Separator:
        """Loads a registered model by name (fetched on first use unless `offline`), or a file or folder by path."""
        device = choose_device(device)  # before any download
        return cls(models.load(model, offline=offline), device=device, config=config)

    def __call__(
        self,
        audio: Any,
        sample_rate: int = 44_100,
        *,
        stem: Stem = None,
        exact: bool = False,
        sanitize: bool = False,
        rescale: bool = False,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Separates an array; see `separate` for `audio`, `sample_rate` and what is returned.

        Args:
            stem: one name or several; None gives all. They add up to the mixture unless `exact`.
            exact: reproduce the pipeline of the model's authors, seams and band limit included.
            sanitize: replace NaN and infinite samples by 0 where they would be an error.
            rescale: turn all stems down by one factor if the loudest would pass full scale.
            progress: called with (seconds done, seconds in all) as the work goes on.
            cancel: once set, the call stops soon, with `Cancelled`.
        """
        layout = ArrayLayout(audio)
        rate_hz = _checked_rate(sample_rate)
        run = _Run(self, self._stems(stem), self._config(exact), sanitize, progress, cancel)
        songs = []
        for i, wave in enumerate(layout.songs):
            song = _ArraySong(wave, rate_hz)
            waves = {name: np.empty_like(wave) for name in run.stems}
            done = 0
            for block in run.separate(song, run.peak(song), share=(i, len(layout.songs))):
                length = block[run.stems[0]].shape[-1]
                for name in run.stems:
                    waves[name][:, done : done + length] = block[name]
                done += length
            songs.append(waves)
        if rescale:
            _rescale(songs)
        return {name: layout.restore([waves[name] for waves in songs], name) for name in run.stems}

    def separate_file(
        self,
        path: str | os.PathLike[str],
        output_dir: str | os.PathLike[str] = "stems",
        *,
        stem: Stem = None,
        container: str | None = None,
        subtype: str | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        overwrite: bool = False,
        skip_existing: bool = False,
        exact: bool = False,
        sanitize: bool = False,
        rescale: bool = False,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> FileResult:
        """Separates a file, block by block in bounded memory, into `output_dir`/<song>/<stem>.<extension>.

        Stems appear under their names once all are complete; whatever stops the work before leaves nothing behind.

        Args:
            path: any file that libsndfile reads, or PyAV where it is installed.
            container: "wav", "flac", "mp3", "ogg", "opus"; None is the input's own (wav where it cannot be written).
            subtype: sample type as soundfile names it, "PCM_24", "FLOAT"; None is the input's own where it fits.
            start_s, duration_s: the part of the song to separate.
            overwrite, skip_existing: what to do about stems that are there already; otherwise they are an error.
            stem, exact, sanitize, rescale, progress, cancel: as for arrays.
        Raises:
            AudioFileError: `path` cannot be read or an output not written. AudioFormatError: the output's format cannot
            hold the song. OutputExistsError: a stem is there already.
        """
        started = time.monotonic()
        run = _Run(self, self._stems(stem), self._config(exact), sanitize, progress, cancel)

        def reader() -> AudioReader:
            return AudioReader(path, start_s=start_s, duration_s=duration_s)

        with reader() as song:
            _check_channels(song.channels, path)
            form = output_format(container, subtype, song.format, song.sample_rate_hz, song.channels)
            peak = run.peak(song)
        outputs = {name: output_path(output_dir, path, name, form) for name in run.stems}
        existing = [name for name in run.stems if outputs[name].exists()]
        if existing and not (overwrite or skip_existing):
            raise OutputExistsError(f"{outputs[existing[0]]}: exists already; see overwrite and skip_existing")
        _check_not_input(path, outputs.values())
        skipped = existing if skip_existing else []
        run = dataclasses.replace(run, stems=[name for name in run.stems if name not in skipped])
        result = FileResult(os.fspath(path), outputs, skipped, duration_s=song.samples / song.sample_rate_hz)
        if run.stems:
            with reader() as song:
                written = {name: outputs[name] for name in run.stems}
                blocks = run.separate(song, peak)
                try:
                    result.peaks = _write_stems(
                        _rescaled(blocks) if rescale else blocks, written, song, form, overwrite
                    )
                except InvalidAudioError as error:
                    raise InvalidAudioError(f"{os.fspath(path)}: {error}") from None
        result.elapsed_s = time.monotonic() - started
        return result

    def separate_files(
        self, paths: Iterable[str | os.PathLike[str]], output_dir: str | os.PathLike[str] = "stems", **options: Any
    ) -> Iterator[FileResult]:
        """Separates files one after the other; yields each one's result, with its `error` where it failed.

        Args:
            options: those of `separate_file`.
        Raises:
            OutputExistsError: two paths would write the same stems. ValueError: no such stem.
            Nothing has been done then.
        """
        paths = list(paths)
        self._stems(options.get("stem"))
        _check_distinct(paths, output_dir)
        for path in paths:
            try:
                yield self.separate_file(path, output_dir, **options)
            except Cancelled:
                raise
            except (OSError, ValueError) as error:  # PyunetsepErrors among them
                yield FileResult(os.fspath(path), error=error)

    def _stems(self, stem: Stem) -> list[str]:
        names = list(self.model.stems) if stem is None else [stem] if isinstance(stem, str) else list(stem)
        unknown = [name for name in names if name not in self.model.stems]
        if unknown or not names:
            raise ValueError(f"stem must be of {', '.join(self.model.stems)}; got {stem!r}")
        return [name for name in self.model.stems if name in names]

    def _config(self, exact: bool) -> SeparatorConfig:
        return dataclasses.replace(EXACT, batch_patches=self.config.batch_patches) if exact else self.config


class _Song(Protocol):
    """A source of waves: an array's or a file's."""

    sample_rate_hz: int
    channels: int
    samples: int

    def blocks(self, samples: int) -> Iterator[Wave]: ...


class _ArraySong:
    def __init__(self, wave: Wave, sample_rate_hz: int) -> None:
        self.wave, self.sample_rate_hz = wave, sample_rate_hz
        self.channels, self.samples = wave.shape

    def blocks(self, samples: int) -> Iterator[Wave]:
        for start in range(0, self.samples, samples):
            yield self.wave[:, start : start + samples]


@dataclass(frozen=True)
class _Run:
    """One call's choices, and the path that every song takes under them."""

    separator: Separator
    stems: list[str]
    config: SeparatorConfig
    sanitize: bool
    progress: Progress | None
    cancel: threading.Event | None

    def peak(self, song: _Song) -> torch.Tensor | None:
        """A pass over the song for its loudest magnitude, where the model is normalised by that."""
        model = self.separator.model
        if model.normalisation != "song":
            return None
        down = Resampler(song.sample_rate_hz, model.spectrogram.sample_rate_hz, song.channels)
        meter = PeakMeter(model, self.config, song.channels, self.separator.device)
        for block in song.blocks(self._block(song)):
            meter.push(torch.from_numpy(down.push(block.astype(np.float32, copy=False))))
        meter.push(torch.from_numpy(down.flush()))
        return meter.flush()

    def separate(
        self, song: _Song, peak: torch.Tensor | None, share: tuple[int, int] = (0, 1)
    ) -> Iterator[dict[str, Wave]]:
        """Yields the song's stems, block by block. `share`: this song's index, of so many, for the progress."""
        model, networks = self.separator.model, self.separator.networks
        made = StemStream.synthesised(model.stems, self.stems, additive=self.config.additive)
        unmixer = Unmixer(model, networks, self.config, song.channels, made, peak=peak)
        stream = StemStream(unmixer, song.sample_rate_hz, song.channels, self.stems, sanitize=self.sanitize)
        length_s = song.samples / song.sample_rate_hz
        for block in song.blocks(self._block(song)):
            if self.cancel is not None and self.cancel.is_set():
                raise Cancelled(f"cancelled after {stream.received / song.sample_rate_hz:.1f} s of {length_s:.1f} s")
            yield stream.push(block)
            if self.progress is not None:
                index, songs = share
                self.progress(index * length_s + stream.received / song.sample_rate_hz, songs * length_s)
        if stream.received:
            yield stream.flush()

    def _block(self, song: _Song) -> int:
        return max(1, round(BLOCK_S * song.sample_rate_hz))


def output_path(output_dir: str | os.PathLike[str], path: str | os.PathLike[str], stem: str, form: AudioFormat) -> Path:
    return Path(output_dir) / Path(path).stem / (stem + extension(form))


def _check_not_input(path: str | os.PathLike[str], outputs: Iterable[Path]) -> None:
    for output in outputs:
        if output.exists() and os.path.samefile(path, output):
            raise OutputExistsError(f"{os.fspath(path)}: is the file that a stem would be written to")


def _check_channels(channels: int, path: str | os.PathLike[str]) -> None:
    if channels > MAX_CHANNELS:
        raise InvalidAudioError(f"{os.fspath(path)}: has {channels} channels; at most {MAX_CHANNELS} can be separated")


def _check_distinct(paths: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]) -> None:
    folders: dict[Path, str | os.PathLike[str]] = {}
    for path in paths:
        folder = Path(output_dir) / Path(path).stem
        if folder in folders:
            raise OutputExistsError(
                f"{os.fspath(path)} and {os.fspath(folders[folder])} would both write to {folder}; "
                "separate them into different folders"
            )
        folders[folder] = path


def _write_stems(
    blocks: Iterator[dict[str, Wave]], outputs: dict[str, Path], song: AudioReader, form: AudioFormat, overwrite: bool
) -> dict[str, float]:
    """Writes every stem's blocks; the files get their names once all are complete. Returns the stems' peaks."""
    with ExitStack() as stack:
        for folder in {path.parent for path in outputs.values()}:
            stack.enter_context(_folder(folder))
        writers = {
            name: stack.enter_context(
                AudioWriter(
                    path,
                    sample_rate_hz=song.sample_rate_hz,
                    channels=song.channels,
                    samples=song.samples,
                    format=form,
                    overwrite=overwrite,
                )
            )
            for name, path in outputs.items()
        }
        for block in blocks:
            for name, wave in block.items():
                writers[name].write(wave)
        for writer in writers.values():
            writer.finish()
        for writer in writers.values():
            writer.commit()
    for name, writer in writers.items():
        if writer.clipped_samples:
            warnings.warn(
                f"{outputs[name]}: {name} peaks at {writer.peak:.3f} of full scale, and {writer.clipped_samples} "
                "samples were clipped; --rescale turns all stems down together, --subtype FLOAT keeps them as they are",
                ClippingWarning,
                stacklevel=3,
            )
    return {name: writer.peak for name, writer in writers.items()}


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the folder, and removes it again if it was new and stays empty."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for parent in missing:
            with suppress(OSError):  # not empty: it holds the stems
                parent.rmdir()


def _rescaled(blocks: Iterator[dict[str, Wave]]) -> Iterator[dict[str, Wave]]:
    """The same blocks, turned down by one factor so that the loudest fits full scale; they wait in a temporary file."""
    peak = 1.0
    with tempfile.TemporaryFile(prefix="pyunetsep-") as spool:
        count = 0
        for block in blocks:
            peak = max([peak, *(float(np.abs(wave).max(initial=0.0)) for wave in block.values())])
            for wave in block.values():
                np.save(spool, wave, allow_pickle=False)
            count += 1
            names = list(block)
        spool.seek(0)
        for _ in range(count):
            yield {name: np.load(spool, allow_pickle=False) / np.float32(peak) for name in names}


def _rescale(songs: list[dict[str, Wave]]) -> None:
    """Turns all stems of all songs down by one factor, in place, until the loudest fits full scale."""
    peak = max((float(np.abs(wave).max(initial=0.0)) for waves in songs for wave in waves.values()), default=0.0)
    if peak > 1.0:
        for waves in songs:
            for wave in waves.values():
                wave /= peak


def _checked_rate(sample_rate: int) -> int:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.integer, np.floating)):
        raise TypeError(f"sample_rate must be a number of Hz, got {type(sample_rate).__name__}")
    if not 1_000 <= sample_rate <= 768_000 or sample_rate != int(sample_rate):  # NaN fails the first
        raise ValueError(f"sample_rate must be a whole number of Hz from 1000 to 768000, got {sample_rate}")
    return int(sample_rate)
