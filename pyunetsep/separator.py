"""The front door: a song as an array or a file in, its stems out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch

from . import models
from .arrays import MAX_CHANNELS, ArrayLayout, loudest
from .audio import AudioReader, PipeReader, PipeWriter, Wave, open_pipe, output_format
from .checkpoint import Checkpoint
from .config import EXACT, SeparatorConfig
from .cuda_plan import CudaPlan
from .device import choose_device
from .engine import Engine, Estimator, Networks, batch_patches
from .errors import Cancelled, DeviceError, InvalidAudioError
from .ops import kernels_enabled
from .schedule import Schedule
from .song_files import (
    FileResult,
    OutputTemplate,
    StrPath,
    check_batch,
    check_outputs,
    rescaled,
    warn_of_clipping,
    write_stems,
)
from .song_stream import SongStream, live_schedule
from .stream import Check, SongPeaks, StemStream
from .transfers import Fetched, Transfers, ahead
from .unet import UNet
from .unet_plan import UNetPlan
from .workers import AnyOf, in_threads

DEFAULT_MODEL = "spleeter-2stems"
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
BLOCK_S = 5.0  # what is read, and reported as progress, at a time
CUDA_BLOCK_S = 60.0  # a GPU takes milliseconds for it
MAX_WORKERS = 8  # of songs on a CPU: more take memory, and fewer cores each
CUDA_WORKERS = 4  # one on the GPU, the others decode and encode
BLOCKS_A_WAIT = 32  # what is read at a time of a song that is still coming in, as a share of its latency
CPU = torch.device("cpu")

Progress = Callable[[float, float], object]  # seconds done, seconds in all (inf: not known)
Stem = str | Sequence[str] | None


class Signal(Protocol):
    """A `threading.Event`, or what is asked like one."""

    def is_set(self) -> bool: ...


def separate(
    audio: Any,
    sample_rate: int = 44_100,
    *,
    model: StrPath = DEFAULT_MODEL,
    stem: Stem = None,
    device: str | torch.device = "auto",
    exact: bool = False,
    sanitize: bool = False,
    rescale: bool = False,
    progress: Progress | None = None,
    cancel: Signal | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Separates a song into its stems.

    The model is loaded once and kept for the next call; with a `Separator` you decide yourself how long it stays.

    Args:
        audio: NumPy array (samples,) or (samples, channels), or torch tensor (samples,) or (..., channels, samples);
            int16, int32 or floating, full scale 1.0. Never changed.
        sample_rate: of `audio`, in Hz, from 1000 to 768000.
        model: a registered name, a `.safetensors` file or a folder: see `pyunetsep models list`.
        stem: one name or several; None gives all. They add up to the mixture unless `exact`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        exact: reproduce the pipeline of the model's authors, seams and band limit included.
        sanitize: put 0 in the place of NaN and infinite samples, which are an error otherwise.
        rescale: turn all stems down by one factor if the loudest would pass full scale.
        progress: called with (seconds done, seconds in all) as the work goes on.
        cancel: once set, the call stops soon, with `Cancelled`.
        offline: never download the model.
    Returns:
        {stem's name: an array like `audio`}.
    Raises:
        TypeError, ValueError: `audio` or an option is not what it should be. ModelUnavailableError: no weights.
        DeviceError: the device cannot be used.
    """
    name = os.fspath(model)
    written = os.stat(name).st_mtime_ns if os.path.exists(name) else None  # a file that was trained anew is read anew
    return _loaded(name, written, str(device), offline)(
        audio, sample_rate, stem=stem, exact=exact, sanitize=sanitize, rescale=rescale, progress=progress, cancel=cancel
    )


@functools.lru_cache(maxsize=1)
def _loaded(model: str, _written: int | None, device: str, offline: bool) -> Separator:
    return Separator.from_pretrained(model, device=device, offline=offline)


class Separator:
    """A model on a device. Threads may share a Separator."""

    def __init__(
        self, checkpoint: Checkpoint, *, device: str | torch.device = "auto", config: SeparatorConfig | None = None
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"checkpoint must be a Checkpoint, got {type(checkpoint).__name__}; "
                "Separator.from_pretrained loads a model by name or path"
            )
        self.model, self.info = checkpoint.config, checkpoint.info
        self.device = choose_device(device)
        self.config = config or SeparatorConfig()
        _check_precision(self.config, self.device)
        self.networks = {
            stem: copy.deepcopy(network).to(self.device).eval().requires_grad_(False)
            for stem, network in checkpoint.networks.items()
        }
        self._plans: dict[str, UNetPlan] = {}
        self._engines: dict[tuple[bool, str], Engine] = {}  # by whether kernels run, and in which precision
        self._preparing = threading.Lock()

    def __repr__(self) -> str:
        return f"Separator({self.info.name!r}, device={str(self.device)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_plans", "_engines", "_preparing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy makes its own plans."""
        vars(self).update(state, _plans={}, _engines={}, _preparing=threading.Lock())

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
        _check_precision(config or SeparatorConfig(), device)
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
        cancel: Signal | None = None,
    ) -> dict[str, Any]:
        """Separates an array; arguments, result and errors are those of `pyunetsep.separate`."""
        layout = ArrayLayout(audio)
        rate_hz = _checked_rate(sample_rate)
        stems = self.model.chosen_stems(stem)
        songs: list[_ArraySong] = []

        def started() -> Iterator[tuple[_Run, _ArraySong, dict[str, Fetched]]]:
            for i, wave in enumerate(layout.songs):
                song = _ArraySong(wave, rate_hz, {name: layout.stem(i) for name in stems})
                songs.append(song)
                report = _share(progress, i, len(layout.songs))
                name = f"song {i}: " if len(layout.songs) > 1 else ""
                run = _Run(self, stems, self._config(exact), sanitize, report, cancel, name=name)
                for block in run.start(song, run.peaks(song.open), song.device):
                    yield run, song, block

        for run, song, block in ahead(started(), self._ahead):  # from song to song as well
            song.take(block)
            run.report(song, song.done)
        if rescale:
            _rescale([song.made for song in songs])
        return {name: layout.restore([song.made[name] for song in songs], name) for name in stems}

    def separate_file(
        self,
        path: StrPath,
        output_dir: StrPath = "stems",
        *,
        template: str = OutputTemplate.DEFAULT,
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
        cancel: Signal | None = None,
    ) -> FileResult:
        """Separates a file, block by block in bounded memory, by default into `output_dir`/<song>/<stem>.<extension>.

        Stems appear under their names once all are complete; whatever stops the work before leaves nothing behind.

        Args:
            path: any file that libsndfile reads, or PyAV where it is installed.
            template: of the stems' names within `output_dir`, see `OutputTemplate`.
            stem, exact, sanitize, rescale, progress, cancel: as for `pyunetsep.separate`.
            container: "wav", "flac", "mp3", "ogg", "opus"; None is the input's own (wav where it cannot be written).
            subtype: sample type as soundfile names it, "PCM_24", "FLOAT"; None is the input's own where it fits.
            start_s, duration_s: the part of the song to separate.
            overwrite, skip_existing: what to do about stems that are there already; otherwise they are an error.
        Raises:
            AudioFileError: `path` cannot be read or an output not written. AudioFormatError: the output's format cannot
            hold the song. OutputExistsError: a stem is there already. InvalidAudioError: samples, rate or channels
            that cannot be separated.
        """
        started = time.monotonic()
        if overwrite and skip_existing:
            raise ValueError("overwrite and skip_existing exclude each other")
        naming = OutputTemplate(template)
        run = _Run(self, self.model.chosen_stems(stem), self._config(exact), sanitize, progress, cancel)
        run = dataclasses.replace(run, first_s=start_s, name=f"{os.fspath(path)}: ")

        def reader() -> AudioReader:
            return AudioReader(path, start_s=start_s, duration_s=duration_s)

        with reader() as song:
            _check_song(song)
            form = output_format(container, subtype, song.format, song.sample_rate_hz, song.channels)
            outputs = naming.paths(output_dir, path, run.stems, form)
            skipped = check_outputs(path, outputs, overwrite=overwrite, skip_existing=skip_existing)
            run = dataclasses.replace(run, stems=[name for name in run.stems if name not in skipped])
            result = FileResult(os.fspath(path), outputs, skipped, duration_s=song.samples / song.sample_rate_hz)
            if run.stems:
                blocks = run.separate(song, run.peaks(reader))
                if rescale:
                    blocks = rescaled(blocks)
                written = {name: outputs[name] for name in run.stems}
                result.peaks = write_stems(blocks, written, song, form, overwrite=overwrite)
        result.elapsed_s = time.monotonic() - started
        return result

    def stream(
        self,
        sample_rate: int = 44_100,
        channels: int = 2,
        *,
        stem: Stem = None,
        latency_s: float | None = None,
        exact: bool = False,
        sanitize: bool = False,
    ) -> SongStream:
        """Begins a song that comes in blocks, from a microphone or a decoder: see `SongStream.push` and `flush`.

            with separator.stream(48_000, channels=2) as stream:
                for block in blocks:
                    play(stream.push(block)["accompaniment"])
                play(stream.flush()["accompaniment"])

        Args:
            sample_rate: in Hz, from 1000 to 768000; channels: from 1 to 64.
            latency_s: how long a sample may wait for its stems, in seconds. None: as long as the network's patches are
                (12 s), and the stems are those that the separator makes of the whole song. A shorter time lets the
                networks hear less of what follows, and takes more computing.
            stem, exact, sanitize: as for `pyunetsep.separate`.
        Raises:
            TypeError, ValueError: an option is not what it should be, `latency_s` is too short (the message says what
            is possible), or the model is normalised by the whole song and cannot stream.
        """
        return SongStream(
            self.model,
            self._engine(self._config(exact)),
            self._config(exact),
            _checked_rate(sample_rate),
            _checked_channels(channels),
            self.model.chosen_stems(stem),
            latency_s=latency_s,
            sanitize=sanitize,
        )

    def separate_pipe(
        self,
        source: BinaryIO | StrPath,
        sink: BinaryIO,
        stem: str,
        *,
        container: str | None = None,
        subtype: str | None = None,
        start_s: float = 0.0,
        duration_s: float | None = None,
        latency_s: float | None = None,
        exact: bool = False,
        sanitize: bool = False,
        rescale: bool = False,
        progress: Progress | None = None,
        cancel: Signal | None = None,
    ) -> FileResult:
        """Separates a pipe, or a file, into one stem that is written as it is made, in constant memory.

        A WAV is read as it comes, and its length need not be known; other formats are copied to a temporary file first.

        Args:
            source: binary, such as `sys.stdin.buffer`, or a path.
            sink: binary, such as `sys.stdout.buffer`; it stays open.
            stem: the one to write.
            latency_s: see `stream`; a 32nd more for what is read at a time. None: whole patches, the stem is that of
                `separate_file`.
            container: "wav", "flac", "mp3", "ogg" or "opus"; None is the input's own.
            subtype, start_s, duration_s: as for `separate_file`. progress: the seconds in all are inf if not known.
            exact, sanitize, rescale, cancel: as for `pyunetsep.separate`; to `rescale` all must have been seen first.
        Raises:
            AudioFileError, AudioFormatError, InvalidAudioError, ValueError: as `separate_file`; what is written stays.
            BrokenPipeError: nobody reads `sink`.
        """
        started = time.monotonic()
        stems = self.model.chosen_stems(stem)
        run = _Run(self, stems, self._config(exact), sanitize, progress, cancel, first_s=start_s)
        with ExitStack() as stack:
            song = stack.enter_context(self._opened(source, start_s, duration_s))
            _check_song(song)
            run = dataclasses.replace(run, name=f"{song.path}: ")
            if latency_s is not None or not isinstance(song, AudioReader):
                schedule, latency_s = live_schedule(self.model, run.config, song.sample_rate_hz, latency_s)
                run = dataclasses.replace(run, schedule=schedule, block_s=min(latency_s / BLOCKS_A_WAIT, BLOCK_S))
            form = output_format(container, subtype, song.format, song.sample_rate_hz, song.channels)
            writer = stack.enter_context(
                closing(
                    PipeWriter(
                        sink,
                        "standard output" if sink is sys.stdout.buffer else "sink",
                        sample_rate_hz=song.sample_rate_hz,
                        channels=song.channels,
                        format=form,
                        samples=song.samples,
                    )
                )
            )
            peaks = run.peaks(lambda: AudioReader(song.path, start_s=start_s, duration_s=duration_s))
            blocks = run.separate(song, peaks)
            written = 0
            for block in rescaled(blocks) if rescale else blocks:
                writer.write(block[stem])
                written += block[stem].shape[-1]
            writer.finish()
            if isinstance(song, PipeReader):
                song.drain()
            warn_of_clipping(writer, f"{song.path}: {stem}")
        return FileResult(
            song.path,
            duration_s=written / song.sample_rate_hz,
            elapsed_s=time.monotonic() - started,
            peaks={stem: writer.peak},
        )

    def _opened(
        self, source: BinaryIO | StrPath, start_s: float, duration_s: float | None
    ) -> AbstractContextManager[AudioReader | PipeReader]:
        if isinstance(source, (str, os.PathLike)):
            return AudioReader(source, start_s=start_s, duration_s=duration_s)
        name = "standard input" if source is sys.stdin.buffer else "source"
        twice = self.model.normalisation == "song"
        return open_pipe(source, name, start_s=start_s, duration_s=duration_s, whole=twice)

    def separate_files(
        self,
        paths: Iterable[StrPath],
        output_dir: StrPath = "stems",
        *,
        workers: int = 1,
        template: str = OutputTemplate.DEFAULT,
        **options: Any,
    ) -> Iterator[FileResult]:
        """Separates files; a file that failed has an `error`, and the others are separated.

        Args:
            paths: files, or what `find_songs` found.
            workers: songs at a time. 1: one after the other, as the results are asked for. More: in threads that share
                the cores, so that decoding, networks and encoding overlap; results come as they are done, and
                `progress` is called from those threads.
            template: see `separate_file`.
            options: those of `separate_file`.
        Raises:
            OutputExistsError: two paths would write the same stems, or one overwrite another. ValueError: no such stem,
            `workers` below 1, a template that names no file. All come at once, before anything is done.
        """
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths must be a list of paths, got {paths!r}; separate_file takes one")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be a whole number from 1 on, got {workers!r}")
        paths = list(paths)
        check_batch(paths, output_dir, OutputTemplate(template), self.model.chosen_stems(options.get("stem")))
        cancel = options.pop("cancel", None)

        def separated(path: StrPath, stop: threading.Event | None) -> FileResult:
            either = AnyOf(cancel, stop)
            return self._separate_one(path, output_dir, {**options, "template": template, "cancel": either})

        if workers == 1:
            return (separated(path, None) for path in paths)
        return in_threads(separated, paths, workers=workers)

    @property
    def default_workers(self) -> int:
        """Songs at a time that keep this machine busy."""
        cores = torch.get_num_threads()
        return min(cores, MAX_WORKERS if self.device.type == "cpu" else CUDA_WORKERS)

    def _separate_one(self, path: StrPath, output_dir: StrPath, options: dict[str, Any]) -> FileResult:
        try:
            return self.separate_file(path, output_dir, **options)
        except (OSError, ValueError, DeviceError) as problem:  # PyunetsepErrors among them
            error: Exception = problem
        except (MemoryError, RuntimeError) as problem:
            if not _out_of_memory(problem):
                raise
            hint = "a smaller batch_patches or device='cpu' (--device cpu) takes less"
            error = DeviceError(f"{os.fspath(path)}: {self.device} is out of memory; {hint}")
        return FileResult(os.fspath(path), error=_without_frames(error))

    def _engine(self, config: SeparatorConfig) -> Engine:
        """The networks in the form that runs fastest, made when first asked for."""
        with_kernels = kernels_enabled() and all(network.dtype == torch.float32 for network in self.networks.values())
        planned = with_kernels and self.device.type == "cuda"
        precision = config.precision or ("float16" if planned else "float32")
        if precision != "float32" and not planned:
            raise ValueError(
                f"precision {precision} needs the kernels (no PYUNETSEP_KERNELS=0) and a model in float32, got "
                f"{next(iter(self.networks.values())).dtype}"
            )
        with self._preparing:
            key = with_kernels, precision
            if key not in self._engines:
                estimator: Estimator
                if planned:
                    estimator = CudaPlan(self.networks, device=self.device, precision=getattr(torch, precision))
                else:
                    estimator = Networks(self._estimators())
                batch = batch_patches(self.model, self.config, self.device)
                self._engines[key] = Engine(estimator, batch, graphs=planned)
            return self._engines[key]

    def _estimators(self) -> Mapping[str, UNet | UNetPlan]:
        """The networks one by one: compiled plans on a CPU."""
        planned = all(network.dtype == torch.float32 for network in self.networks.values())
        if self.device.type != "cpu" or not planned or not kernels_enabled():
            for network in self.networks.values():  # the layout that PyTorch's convolutions are fastest in
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return self.networks
        for stem, network in self.networks.items():
            if stem not in self._plans:
                self._plans[stem] = UNetPlan(
                    network,
                    bins=self.model.spectrogram.bins,
                    frames=self.model.patch_frames,
                    batch=batch_patches(self.model, self.config, self.device),
                )
        return self._plans

    @property
    def _ahead(self) -> int:
        """How many blocks are begun before one is waited for."""
        return 1 if self.device.type == "cuda" else 0

    def _config(self, exact: bool) -> SeparatorConfig:
        if not exact:
            return self.config
        precision = self.config.precision or EXACT.precision
        return dataclasses.replace(EXACT, batch_patches=self.config.batch_patches, precision=precision)


class _Song(Protocol):
    """A source of waves: an array's or a file's."""

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def samples(self) -> int | None: ...

    def blocks(self, samples: int) -> Iterator[Wave] | Iterator[torch.Tensor]: ...


class _ArraySong:
    def __init__(self, wave: Wave | torch.Tensor, sample_rate_hz: int, made: dict[str, torch.Tensor]) -> None:
        """`made` are the stems, to be filled."""
        self.wave, self.sample_rate_hz, self.made, self.done = wave, sample_rate_hz, made, 0
        self.channels, self.samples = int(wave.shape[0]), int(wave.shape[1])
        self.device = wave.device if isinstance(wave, torch.Tensor) else CPU

    def open(self) -> AbstractContextManager[_ArraySong]:
        return nullcontext(self)

    def blocks(self, samples: int) -> Iterator[Any]:
        for start in range(0, self.samples, samples):
            yield self.wave[:, start : start + samples]

    def take(self, block: dict[str, Fetched]) -> None:
        """The stems' next samples."""
        waves = {name: fetched.wait() for name, fetched in block.items()}
        end = self.done + next(iter(waves.values())).shape[-1]
        for name, wave in waves.items():
            # channel by channel: both at once, the copy would walk along the channels, which are few
            for channel, samples in zip(self.made[name], wave, strict=True):
                channel[self.done : end] = samples
        self.done = end


@dataclass(frozen=True)
class _Run:
    """One call's choices, and the path that every song takes under them."""

    separator: Separator
    stems: list[str]
    config: SeparatorConfig
    sanitize: bool
    progress: Progress | None
    cancel: Signal | None
    first_s: float = 0.0  # where the songs are entered
    name: str = ""  # of the song, for messages
    schedule: Schedule | None = None  # of a song that is still coming in
    block_s: float | None = None  # what is read at a time, if not the usual

    def peaks(self, open_song: Callable[[], AbstractContextManager[_Song]]) -> list[torch.Tensor] | None:
        """A pass of its own over the song for its loudest magnitudes, where the model is normalised by these."""
        separator = self.separator
        if separator.model.normalisation != "song":
            return None
        with open_song() as song:
            peaks = SongPeaks(separator.model, self.config, song.sample_rate_hz, song.channels, separator.device)
            for block in self._blocks(song, Transfers(separator.device)):
                peaks.push(block)
            return peaks.flush()

    def start(
        self, song: _Song, peaks: list[torch.Tensor] | None, home: torch.device = CPU
    ) -> Iterator[dict[str, Fetched]]:
        """Sets out on one block of the song after the other; what comes back to `home` are the stems' next samples."""
        model, engine = self.separator.model, self.separator._engine(self.config)
        stream = StemStream(
            model,
            engine,
            self.config,
            song.sample_rate_hz,
            song.channels,
            self.stems,
            peaks=peaks,
            schedule=self.schedule,
        )
        begun = False
        for block in self._blocks(song, stream.transfers):
            begun = True
            yield {name: stream.transfers.fetch(wave, home) for name, wave in stream.push(block).items()}
        if begun:
            yield {name: stream.transfers.fetch(wave, home) for name, wave in stream.flush().items()}

    def separate(self, song: _Song, peaks: list[torch.Tensor] | None) -> Iterator[dict[str, Wave]]:
        """Yields the song's stems, block by block."""
        done = 0
        depth = 0 if self.schedule is not None else self.separator._ahead  # what is live is not held back
        for block in ahead(self.start(song, peaks), depth):
            stems = {name: fetched.wait().numpy() for name, fetched in block.items()}
            done += stems[self.stems[0]].shape[-1]
            self.report(song, done)
            yield stems

    def report(self, song: _Song, done: int) -> None:
        """Tells of so many samples done."""
        if self.progress is not None:
            samples = math.inf if song.samples is None else song.samples
            self.progress(done / song.sample_rate_hz, samples / song.sample_rate_hz)

    def _blocks(self, song: _Song, transfers: Transfers) -> Iterator[torch.Tensor]:
        """The song's blocks, checked, until the call is cancelled."""
        check = Check(
            song.sample_rate_hz, sanitize=self.sanitize, first_sample=round(self.first_s * song.sample_rate_hz)
        )
        block_s = self.block_s or (CUDA_BLOCK_S if self.separator.device.type == "cuda" else BLOCK_S)
        for block in song.blocks(max(1, round(block_s * song.sample_rate_hz))):
            self._stop_if_cancelled()
            try:
                yield check(transfers.staged(block))
            except InvalidAudioError as error:
                raise InvalidAudioError(f"{self.name}{error}") from None
        self._stop_if_cancelled()

    def _stop_if_cancelled(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled(f"{self.name}cancelled")


def _share(progress: Progress | None, song: int, songs: int) -> Progress | None:
    """The progress of one of several songs of equal length."""
    if progress is None or songs == 1:
        return progress
    return lambda done_s, total_s: progress(song * total_s + done_s, songs * total_s)


def _rescale(songs: list[dict[str, torch.Tensor]]) -> None:
    """Turns all stems of all songs down by one factor, in place, until the loudest fits full scale."""
    peak = max((loudest(wave) for waves in songs for wave in waves.values()), default=0.0)
    if peak > 1.0:
        for waves in songs:
            for wave in waves.values():
                wave /= peak


def _out_of_memory(error: Exception) -> bool:
    """On a CPU, torch has no class of its own for it."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _without_frames(error: Exception) -> Exception:
    """The error less its tracebacks, which would keep a failed song's buffers for as long as its result."""
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__cause__ or chained.__context__
    return error


def _check_precision(config: SeparatorConfig, device: torch.device) -> None:
    if device.type == "cpu" and config.precision not in (None, "float32"):
        raise ValueError(
            f"precision must be float32 on a CPU, got {config.precision!r}; float16 and bfloat16 are for a GPU"
        )


def _checked_rate(sample_rate: object) -> int:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float, np.integer, np.floating)):
        raise TypeError(f"sample_rate must be a number of Hz, got {type(sample_rate).__name__}")
    if not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ or sample_rate != int(sample_rate):  # NaN fails the first
        raise ValueError(
            f"sample_rate must be a whole number of Hz from {MIN_RATE_HZ} to {MAX_RATE_HZ}, got {sample_rate}"
        )
    return int(sample_rate)


def _checked_channels(channels: object) -> int:
    if isinstance(channels, bool) or not isinstance(channels, (int, np.integer)):
        raise TypeError(f"channels must be a whole number, got {type(channels).__name__}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"channels must be from 1 to {MAX_CHANNELS}, got {channels}")
    return int(channels)


def _check_song(song: AudioReader | PipeReader) -> None:
    if song.channels > MAX_CHANNELS:
        raise InvalidAudioError(f"{song.path}: has {song.channels} channels; at most {MAX_CHANNELS} can be separated")
    if not MIN_RATE_HZ <= song.sample_rate_hz <= MAX_RATE_HZ:
        raise InvalidAudioError(
            f"{song.path}: has a rate of {song.sample_rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} can be separated"
        )
