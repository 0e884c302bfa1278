"""Separates songs for pages that come and go: one at a time, within limits, into files that do not stay."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..audio import AudioReader, AudioWriter, output_format
from ..errors import Cancelled, InvalidAudioError, PyunetsepError
from ..plot import READ_SAMPLES, Spectrogram, draw_picture, draw_strip, read_spectrogram
from ..separator import Separator

MIXTURE = "mixture"
PICTURE = "spectrograms.png"
MIB = 1 << 20
REMEMBERED = 1000  # of those who left: they may have a song on its way here for seconds
SWEEP_S = 60.0  # how often old files are looked for
CONTAINER, SUBTYPE, SAMPLE_BYTES = "wav", "PCM_16", 2  # plays everywhere
EXPECTED = (PyunetsepError, OSError, ValueError, MemoryError)  # what songs, disks and their owners are to blame for

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the page takes, and for how long it keeps what it made.

    Attributes:
        max_bytes: of an uploaded file.
        max_s: length of a song; a small file may hold a long one.
        keep_s: how long files stay after they were last asked for, if the page is not closed before.
    """

    max_bytes: int = 200 * MIB
    max_s: float = 1800.0
    keep_s: float = 3600.0


@dataclass(frozen=True)
class SeparatedSong:
    """A song and what became of it.

    Attributes:
        name: as its owner calls it, without extension.
        files: {"mixture.wav", "vocals.wav", ..., "mixture.png", ...: path}; WAVs of 16 bits, and a spectrogram of each.
        notes: what the owner should know.
    """

    name: str
    sample_rate_hz: int
    channels: int
    samples: int
    stems: tuple[str, ...]
    files: dict[str, Path]
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Job:
    """A song on its way.

    Attributes:
        token: names it in addresses; cannot be guessed.
        stage, share: what is being done, and how much of that, from 0 to 1; None where nobody knows.
        result: the `SeparatedSong`, once there is one; its exception is for `explain`.
    """

    owner: str
    upload: Path
    folder: Path
    stage: str = "waiting"
    share: float | None = None
    last_used_s: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: Future[SeparatedSong] = field(init=False)

    @property
    def token(self) -> str:
        return self.folder.name

    def at(self, stage: str, share: float | None = None) -> None:
        """Notes how far it is.

        Raises:
            Cancelled: nobody wants it any more.
        """
        self.go_on()
        self.stage, self.share = stage, share

    def go_on(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("cancelled")


class Studio:
    """Threads may share it.

    Args:
        separator: whose stems are wanted.
        folder: an existing one, whose whole content is the studio's to remove.
        limits: of songs and of time.
    """

    def __init__(self, separator: Separator, folder: Path, limits: Limits | None = None) -> None:
        self.separator, self.folder, self.limits = separator, folder, limits or Limits()
        self.uploads = folder / "uploads"  # where files wait for `submit`
        self.uploads.mkdir()
        self._jobs: dict[str, Job] = {}  # by token, in the order they came
        self._gone: deque[str] = deque(maxlen=REMEMBERED)  # owners who have left
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "separation")
        self._closed = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_now_and_then, name="sweeper", daemon=True)
        self._sweeper.start()

    def submit(self, owner: str, upload: Path) -> Job:
        """Queues a song, in place of any that its owner had; the upload is the studio's from here on.

        Raises:
            Cancelled: the owner has left. FileNotFoundError: the upload is gone.
        """
        self.forget(owner)
        folder = self.folder / secrets.token_urlsafe(16)
        (folder / "upload").mkdir(parents=True)
        job = Job(owner, folder / "upload" / upload.name, folder)
        try:
            os.replace(upload, job.upload)
            with suppress(OSError):  # it holds another upload
                upload.parent.rmdir()
            with self._lock:
                if owner in self._gone:
                    raise Cancelled("the page was closed, or lost its connection")
                job.result = self._worker.submit(self._run, job)
                self._jobs[job.token] = job
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job

    def songs_before(self, job: Job) -> int:
        """How many songs are separated before this one begins."""
        with self._lock:
            jobs = list(self._jobs.values())
        return sum(not other.result.done() for other in jobs[: jobs.index(job)]) if job in jobs else 0

    def cancel(self, owner: str) -> None:
        """Stops what is on its way for this owner; nothing of it stays."""
        for job in self._of(owner):
            if not job.result.done():
                self._drop(job)

    def forget(self, owner: str) -> None:
        """Stops and removes all that this owner has."""
        for job in self._of(owner):
            self._drop(job)

    def leave(self, owner: str) -> None:
        """`forget`, for good: a song that is still on its way to `submit` is not taken."""
        with self._lock:
            self._gone.append(owner)
        self.forget(owner)

    def file(self, token: str, name: str) -> tuple[Path, SeparatedSong] | None:
        """A finished song's file, which counts as used; None if there is none of that name, or no longer."""
        with self._lock:
            job = self._jobs.get(token)
        if job is None or not job.result.done() or job.result.exception() is not None:
            return None
        job.last_used_s = time.monotonic()
        song = job.result.result()
        return (song.files[name], song) if name in song.files else None

    def sweep(self) -> None:
        """Removes what has not been asked for in `keep_s`: finished songs, and uploads that nobody submitted."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            if job.result.done() and time.monotonic() - job.last_used_s > self.limits.keep_s:
                self._drop(job)
        for upload in self.uploads.rglob("*"):
            with suppress(OSError):  # submitted in the meantime
                if upload.is_file() and time.time() - upload.stat().st_mtime > self.limits.keep_s:
                    upload.unlink()

    def close(self) -> None:
        """Stops all work, waits for it to stop, and removes all files."""
        self._closed.set()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            self._drop(job)
        self._worker.shutdown(wait=True, cancel_futures=True)
        for path in self.folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)

    def explain(self, job: Job) -> str:
        """Why there is no result, for the owner's eyes; empty if it was cancelled."""
        error = None if job.result.cancelled() else job.result.exception()
        if error is None or isinstance(error, Cancelled):
            return ""
        name = job.upload.name
        if not isinstance(error, EXPECTED):
            return f"{name}: an unexpected {type(error).__name__}; the terminal of pyunetsep demo says more"
        if isinstance(error, MemoryError):
            return f"{name}: there is not enough memory for it"
        text = str(error).replace(os.fspath(job.upload), name).replace(f"{job.folder}{os.sep}", "")
        text = text.replace("sanitize=True (--sanitize)", "pyunetsep separate --sanitize")
        return text if text.startswith(name) else f"{name}: {text}"

    def _of(self, owner: str) -> list[Job]:
        with self._lock:
            return [job for job in self._jobs.values() if job.owner == owner]

    def _drop(self, job: Job) -> None:
        with self._lock:
            self._jobs.pop(job.token, None)
        job.cancelled.set()
        job.result.cancel()
        job.result.add_done_callback(lambda _: shutil.rmtree(job.folder, ignore_errors=True))

    def _sweep_now_and_then(self) -> None:
        while not self._closed.wait(min(SWEEP_S, self.limits.keep_s)):
            self.sweep()

    def _run(self, job: Job) -> SeparatedSong:
        try:
            song = self._separate(job)
        except BaseException as error:
            if not isinstance(error, EXPECTED):
                _log.exception("separating %s", job.upload.name)
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        shutil.rmtree(job.upload.parent, ignore_errors=True)
        job.last_used_s = time.monotonic()
        return song

    def _separate(self, job: Job) -> SeparatedSong:
        job.at("reading")
        with AudioReader(job.upload) as song:
            self._check(song)
            rate_hz, channels, samples = song.sample_rate_hz, song.channels, song.samples
        [result] = self.separator.separate_files(
            [job.upload],
            job.folder / "stems",
            container=CONTAINER,
            subtype=SUBTYPE,
            progress=lambda done_s, total_s: job.at("separating", done_s / total_s),
            cancel=job.cancelled,
        )
        if result.error is not None:
            raise result.error
        mixture_path = job.folder / "mixture.wav"
        mixture = self._decode(job, mixture_path)
        job.at("drawing")
        stems = {stem: read_spectrogram(path, on_block=job.go_on) for stem, path in result.outputs.items()}
        files = {f"{name}.wav": path for name, path in {MIXTURE: mixture_path, **result.outputs}.items()}
        for name, spectrogram in {MIXTURE: mixture, **stems}.items():
            files[f"{name}.png"] = job.folder / f"{name}.png"
            draw_strip(spectrogram, mixture, files[f"{name}.png"])
        files[PICTURE] = job.folder / PICTURE
        draw_picture(mixture, stems, files[PICTURE], title=job.upload.name)
        return SeparatedSong(
            name=job.upload.stem,
            sample_rate_hz=rate_hz,
            channels=channels,
            samples=samples,
            stems=tuple(result.outputs),
            files=files,
            notes=tuple(
                f"{stem}: the loudest samples, {peak:.2f} of full scale, are clipped"
                for stem, peak in result.peaks.items()
                if peak > 1.0
            ),
        )

    def _check(self, song: AudioReader) -> None:
        """Whether the song is within the limits, and its files have room."""
        if song.samples == 0:
            raise InvalidAudioError(f"{song.path}: holds no sound")
        minutes, most = song.samples / song.sample_rate_hz / 60, self.limits.max_s / 60
        if minutes > most:
            raise InvalidAudioError(f"{song.path}: lasts {minutes:.1f} minutes; at most {most:g} are taken here")
        waves = 1 + len(self.separator.model.stems)
        needed, free = waves * song.samples * song.channels * SAMPLE_BYTES, shutil.disk_usage(self.folder).free
        if needed > free:
            raise InvalidAudioError(f"{song.path}: needs {needed / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB are free")

    def _decode(self, job: Job, path: Path) -> Spectrogram:
        """Writes the song as the page plays it, beside its stems."""
        with AudioReader(job.upload) as song:
            spectrogram = Spectrogram(song.samples, song.sample_rate_hz)
            with AudioWriter(
                path,
                sample_rate_hz=song.sample_rate_hz,
                channels=song.channels,
                samples=song.samples,
                format=output_format(CONTAINER, SUBTYPE, song.format, song.sample_rate_hz, song.channels),
            ) as writer:
                for block in song.blocks(READ_SAMPLES):
                    job.go_on()
                    spectrogram.push(block)
                    writer.write(block)
                writer.commit()
        if writer.peak == 0.0:
            raise InvalidAudioError(f"{song.path}: is silent, there is nothing to separate")
        return spectrogram
