"""Catalogues on a local Ray of two workers, one of which is killed while it writes stems."""

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

from pyunetsep import DataError, DeviceError, OutputExistsError, Separator
from pyunetsep.catalogue import cluster, run, worker
from pyunetsep.catalogue.cluster import Node, Pool, shared_out
from pyunetsep.catalogue.manifest import Journal, Record
from pyunetsep.checkpoint import Checkpoint
from pyunetsep.cli import main
from pyunetsep.config import SeparatorConfig
from pyunetsep.song_files import Song
from tests.tiny import checkpoint, noise, write_model

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is missing: pip install 'pyunetsep[ray]'")
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="whom to kill is read from Linux's /proc")
RATE_HZ = 8_000
STEMS = ("vocals", "accompaniment")
LONG_S = 600.0  # of noise: takes the tiny model a second, long enough to be caught in the act


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def home():
    """Where Ray keeps logs and sockets: a short name, for those of sockets end at 107 bytes."""
    path = tempfile.mkdtemp(prefix="ray")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def ray(home):
    """A Ray of two cores, and nothing left of it."""
    ray = cluster.imported()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.QUIET.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20, _temp_dir=home
        )
        yield ray
        ray.shutdown()


@pytest.fixture
def separate(model):
    """`catalogue.separate` with the tiny model."""
    return lambda *arguments, **options: run.separate(*arguments, **{"model": model, **options})


def write_song(path, seconds=0.5, channels=2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(channels, round(seconds * RATE_HZ), seed).T.numpy(), RATE_HZ, subtype="PCM_16")
    return path


def write_manifest(path, rows):
    """A table of these rows, of which the first has all columns."""
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read_manifest(path):
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def times(folder):
    """When each stem was made."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}


def writers(folder):
    """The processes that write a file in the folder right now."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            files = [os.readlink(f"/proc/{process}/fd/{number}") for number in os.listdir(f"/proc/{process}/fd")]
        except OSError:  # ended, or another user's
            continue
        if any(file.startswith(f"{folder}{os.sep}.") for file in files):
            found.add(int(process))
    return found


@contextmanager
def killed(**targets):
    """Kills whoever writes into a folder, so many times: name=(folder, times). Tells whom, by the names."""
    kills, over = {name: [] for name in targets}, threading.Event()

    def kill(whom, folder, limit):
        while not over.is_set() and len(whom) < limit:
            for process in writers(folder) - {os.getpid(), *whom}:
                os.kill(process, signal.SIGKILL)
                whom.append(process)
            time.sleep(0.01)

    threads = [threading.Thread(target=kill, args=(kills[name], *target)) for name, target in targets.items()]
    for thread in threads:
        thread.start()
    try:
        yield kills
    finally:
        over.set()
        for thread in threads:
            thread.join()


def until(condition, seconds=240.0):  # Ray's workers give way to all else on a busy machine
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextmanager
def ended(process):
    """The process, killed at the end if it lives."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ray_processes(name):
    """Those of this name, as Ray gives itself names."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(name):
            found.append(int(process))
    return found


@pytest.fixture(scope="module")
def disturbed(ray, model, tmp_path_factory):
    """A run over 20 songs during which workers are killed: one once, and whoever has the song called deadly."""
    folder = tmp_path_factory.mktemp("disturbed")
    names = [f"album/song{i}" for i in range(17)]
    names[4:4], names[9:9], names[12:12] = ["victim"], ["broken"], ["deadly"]
    rows = []
    for i, name in enumerate(names):
        path = folder / "songs" / f"{name}.wav"
        write_song(path, LONG_S if name in ("victim", "deadly") else 0.3 + 0.1 * i, channels=1 + i % 2, seed=i)
        output = f"by number/{i}" if i % 3 == 0 else ""
        rows.append({"path": f"songs/{name}.wav", "output": output, "isrc": f"{i:05}", "tags": 'a "b", c\nd'})
    (folder / "songs" / "broken.wav").write_text("not audio")
    manifest = write_manifest(folder / "songs.csv", rows)
    stems = folder / "stems"
    folders = [stems / (row["output"] or Path(row["path"]).stem) for row in rows]
    seen = []
    with killed(
        victim=(folders[names.index("victim")], 1),
        deadly=(folders[names.index("deadly")], 99),
    ) as kills:
        table = run.separate(
            manifest, stems, model=model, workers=2, retries=1, progress=lambda *report: seen.append(report)
        )
    return folder, names, folders, table, kills, seen, times(stems)


@needs_ray
@needs_proc
def test_every_song_is_done_once_though_workers_are_killed(disturbed, model, tmp_path):
    folder, names, folders, table, kills, seen, _ = disturbed
    assert len(kills["victim"]) == 1 and len(kills["deadly"]) == 2, "nobody was killed in the act"
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == [f"songs/{name}.wav" for name in names]
    assert sorted(done for done, _, _ in seen) == list(range(1, 21)) and len({record.path for *_, record in seen}) == 20

    separator = Separator.from_pretrained(model, device="cpu")
    for name, stems, row in zip(names, folders, rows, strict=True):
        if name in ("broken", "deadly"):
            assert (
                all(row[stem] is None and row[f"{stem}_peak"] is None for stem in STEMS) and row["duration_s"] is None
            )
            continue
        undisturbed = separator.separate_file(folder / row["path"], tmp_path)
        assert row["error"] is None and row["error_type"] is None and row["skipped"] == ""
        assert row["attempts"] == (2 if name == "victim" else 1)
        assert row["duration_s"] == undisturbed.duration_s and row["elapsed_s"] > 0
        for stem, path in undisturbed.outputs.items():
            assert row[stem] == str(stems / f"{stem}.wav")
            assert Path(row[stem]).read_bytes() == path.read_bytes()
            assert row[f"{stem}_peak"] == undisturbed.peaks[stem]
        assert name != "victim" or row["worker_pid"] not in kills["victim"]


@needs_ray
@needs_proc
def test_a_song_that_cannot_be_separated_is_reported_and_the_others_go_on(disturbed):
    folder, names, folders, table, _, _, made = disturbed
    rows = dict(zip(names, table.to_pylist(), strict=True))
    assert rows["broken"]["error_type"] == "AudioFileError" and rows["broken"]["attempts"] == 1
    assert rows["broken"]["error"].startswith(str(folder / "songs" / "broken.wav"))
    assert rows["deadly"]["error_type"] == "WorkerDied" and rows["deadly"]["attempts"] == 2
    assert "2 workers died" in rows["deadly"]["error"]
    failed = {folders[names.index(name)] for name in ("broken", "deadly")}
    assert {path.parent for path in made} == set(folders) - failed
    assert len(made) == 2 * 18


@needs_ray
@needs_proc
def test_a_manifest_of_stems_has_the_songs_columns_as_they_were(disturbed):
    folder, _, _, table, _, _, _ = disturbed
    rows = read_manifest(folder / "stems" / "manifest.parquet")
    assert rows == table.to_pylist()
    assert [row["isrc"] for row in rows] == [f"{i:05}" for i in range(20)]
    assert {row["tags"] for row in rows} == {'a "b", c\nd'}
    assert not list((folder / "stems").glob("*.journal"))


@needs_ray
@needs_proc
def test_a_rerun_does_what_failed_and_nothing_else(disturbed, separate):
    """Comes after the tests above, which look at what it changes."""
    folder, names, _, table, _, _, made = disturbed
    write_song(folder / "songs" / "broken.wav", 1.0)
    again = separate(folder / "songs.csv", folder / "stems", workers=2)
    now = times(folder / "stems")
    assert {path: now[path] for path in made} == made and len(now) == 2 * 20
    for name, before, row in zip(names, table.to_pylist(), again.to_pylist(), strict=True):
        if name in ("broken", "deadly"):
            assert row["error"] is None and row["skipped"] == "" and row["attempts"] == 1
            assert all(os.path.exists(row[stem]) and row[f"{stem}_peak"] > 0 for stem in STEMS)
        else:  # the figures are those of the run that made the stems
            assert row == {**before, "skipped": "vocals accompaniment"}


@needs_ray
@needs_proc
def test_a_run_whose_driver_is_killed_is_gone_on_with(ray, separate, model, tmp_path):
    rows = [{"path": f"song{i}.wav"} for i in range(12)]
    for i, row in enumerate(rows):
        write_song(tmp_path / row["path"], LONG_S if i == 5 else 0.5, seed=i)
    manifest, stems = write_manifest(tmp_path / "songs.parquet", rows), tmp_path / "stems"
    results, journal = stems / "stems.csv", stems / "stems.csv.journal"
    command = [
        sys.executable,
        "-m",
        "pyunetsep",
        "catalogue",
        manifest,
        "-o",
        stems,
        "--manifest",
        results,
        "-m",
        model,
    ]
    folders = [stems / f"song{i}" for i in range(12)]
    with ended(subprocess.Popen([*map(str, command), "--address", ray.get_runtime_context().gcs_address])) as driver:
        until(lambda: (Journal(results).read() and writers(folders[5])) or driver.poll() is not None)
    assert driver.wait() == -signal.SIGKILL, "it was done too soon"
    until(lambda: not any(map(writers, folders)))

    assert not results.exists()
    known = Journal(results).read()
    assert 2 <= len(known) < 24
    with open(journal, "a") as file:
        file.write('{"path": "half a li')  # as a kill leaves it that comes while a line is written
    made = times(stems)
    separate(manifest, stems, results)
    now = times(stems)
    assert len(now) == 24 and {path: now[path] for path in made} == made
    table = read_manifest(results)
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    for row in table:
        assert row["error"] == "" and row["attempts"] == "1"
        for stem in STEMS:
            assert bool(row["skipped"]) == (Path(row[stem]) in made)
            if row[stem] in known:
                assert float(row[f"{stem}_peak"]) == known[row[stem]].peaks[stem]
                assert int(row["worker_pid"]) == known[row[stem]].worker_pid
    assert not journal.exists()


@needs_ray
@needs_proc
def test_a_worker_that_cannot_start_ends_the_run_with_the_reason(ray, separate, tmp_path):
    write_song(tmp_path / "song.wav")
    manifest = write_manifest(tmp_path / "songs.csv", [{"path": "song.wav"}])
    with pytest.raises(ValueError, match="precision must be float32 on a CPU"):
        separate(manifest, tmp_path / "stems", config=SeparatorConfig(precision="float16"))
    until(lambda: not ray_processes(b"ray::MapWorker"))
    assert not (tmp_path / "stems" / "manifest.parquet").exists()


class DeadlyCheckpoint(Checkpoint):
    """Ends the process that loads it."""

    def __reduce__(self):
        return os._exit, (1,)


@needs_ray
def test_a_model_that_kills_workers_ends_the_run(ray, separate, monkeypatch, tmp_path):
    tiny = checkpoint()
    monkeypatch.setattr(run.models, "load", lambda *_, **__: DeadlyCheckpoint(tiny.config, tiny.info, tiny.networks))
    write_song(tmp_path / "song.wav")
    manifest = write_manifest(tmp_path / "songs.csv", [{"path": "song.wav"}])
    with pytest.raises(DeviceError, match="2 workers died one after the other while they loaded the model"):
        separate(manifest, tmp_path / "stems", workers=1, retries=1)


@needs_ray
def test_the_command_reports_what_failed_and_makes_anew_what_it_shall(ray, model, tmp_path, capsys):
    write_song(tmp_path / "song.wav")
    manifest = write_manifest(tmp_path / "songs.csv", [{"path": "song.wav"}, {"path": "missing.wav"}])
    arguments = ["catalogue", str(manifest), "-o", str(tmp_path / "stems"), "-m", str(model), "--workers", "1"]
    before = Separator.from_pretrained(model, device="cpu").separate_file(tmp_path / "song.wav", tmp_path / "stems")
    before.outputs["vocals"].write_text("not stems")
    assert main([*arguments, "--stem", "vocals", "--overwrite", "--format", "wav"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pyunetsep: error: {tmp_path / 'missing.wav'}: ") and captured.err.count("\n") == 1
    song, missing = read_manifest(tmp_path / "stems" / "manifest.parquet")
    assert "accompaniment" not in song and song["skipped"] == "" and missing["vocals"] is None
    assert soundfile.info(song["vocals"]).frames == soundfile.info(tmp_path / "song.wav").frames


@pytest.mark.slow
@needs_ray
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_on_a_ray_of_its_own_leaves_nothing(model, home, tmp_path, number):
    songs = [{"path": str(write_song(tmp_path / f"song{i}.wav", LONG_S if i else 0.5, seed=i))} for i in range(6)]
    manifest, stems = write_manifest(tmp_path / "songs.csv", songs), tmp_path / "stems"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": home}
    before = {*ray_processes(b"ray::")}
    command = [sys.executable, "-m", "pyunetsep", "catalogue", manifest, "-o", stems, "-m", model, "--workers", "1"]
    with ended(subprocess.Popen([*map(str, command)], env=environment, stdout=-1, stderr=-1, text=True)) as driver:
        until(lambda: writers(stems / "song1") or driver.poll() is not None)
        driver.send_signal(number)
        out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out, err) == (130, "", "pyunetsep: interrupted; nothing half-written is left\n")
    assert not list(stems.rglob(".*")) and (stems / "manifest.parquet.journal").exists()
    done = {path.name: len(list(path.iterdir())) for path in stems.iterdir() if path.is_dir()}
    assert len(done) < 6 and set(done.values()) <= {2}  # the song that was at work may just have been done
    until(lambda: {*ray_processes(b"ray::")} <= before)


def test_without_ray_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["catalogue", str(tmp_path / "songs.csv")]) == 3
    assert "pip install 'pyunetsep[ray]'" in capsys.readouterr().err


@needs_ray
@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("songs.csv", "file,path to it\nx,y\n", DataError, r"songs\.csv: no column path; there are file, path to it"),
        ("songs.csv", "", DataError, "no column path; there are none"),
        ("songs.csv", "path\na.wav\n\nb.wav,c\n", DataError, r"songs\.csv, line 4: has 2 fields, want 1"),
        ("songs.csv", "path,output\na.wav,x\n,y\n", DataError, r"songs\.csv, line 3: path must be that of a file"),
        ("songs.csv", "path,path\na.wav,x\n", DataError, "two columns have one name"),
        ("songs.csv", 'path\n"a.wav\n', DataError, "is not a CSV table in UTF-8"),
        ("songs.csv", "path\n\udcff.wav\n", DataError, "is not a CSV table in UTF-8"),
        ("songs.csv", "path,vocals,error\na.wav,b,c\n", DataError, "has vocals, error, as the manifest of stems will"),
        ("songs.csv", "path,output\na.wav,../x\n", DataError, "line 2: output must be a folder inside that of all"),
        ("songs.csv", "path,output\na.wav,/x\n", DataError, "line 2: output must be a folder inside that of all"),
        ("songs.csv", "path,output\na.wav,x/..\n", DataError, "line 2: output must be a folder inside that of all"),
        (
            "songs.csv",
            "path\na/x.wav\nb/x.mp3\n",
            OutputExistsError,
            r"b/x\.mp3 and .*a/x\.wav would both write to .*stems/x",
        ),
        ("songs.csv", "path,output\na.wav,x\nb.wav,./y/../x/\n", OutputExistsError, "would both write to"),
        (
            "songs.csv",
            "path\na.wav\nstems/a/vocals.wav\n",
            OutputExistsError,
            r"stems/a/vocals\.wav lies where a stem of .*a\.wav would be",
        ),
        ("songs.parquet", "not Parquet", DataError, "songs.parquet: is not a Parquet table"),
        ("songs.parquet", "", DataError, "songs.parquet: is not a Parquet table"),
        ("songs.json", "[]", ValueError, r"manifest must be a \.csv or \.parquet file, got '.*songs\.json'"),
        ("nothing.csv", None, DataError, r"nothing\.csv: cannot be read \(No such file or directory\)"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_before_any_work(
    separate, monkeypatch, tmp_path, name, text, error, message
):
    monkeypatch.setattr(run, "connected", lambda _: pytest.fail("Ray was started"))
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(error, match=message):
        separate(tmp_path / name, tmp_path / "stems")
    assert not (tmp_path / "stems").exists()


@needs_ray
@pytest.mark.parametrize("value", [None, "", 7, b"a.wav"])
def test_a_path_in_parquet_must_be_text(separate, tmp_path, value):
    manifest = write_manifest(tmp_path / "songs.parquet", [{"path": value}])
    with pytest.raises(DataError, match=r"songs\.parquet, row 1: path must be that of a file"):
        separate(manifest, tmp_path / "stems")


@needs_ray
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"results": "stems.txt"}, ValueError, r"results must be a \.csv or \.parquet file, got 'stems\.txt'"),
        ({"results": "songs.csv"}, OutputExistsError, "is the manifest of songs; that of stems needs another name"),
        ({"results": "other.csv"}, OutputExistsError, r"other\.csv: is there, and is no manifest of stems"),
        ({"results": "other.parquet"}, OutputExistsError, r"other\.parquet: is there, and is no manifest of stems"),
        ({"stem": "drums"}, ValueError, "stem must be of vocals, accompaniment"),
        ({"output_dir": "st\udcffms"}, ValueError, "output_dir must be in UTF-8"),
        ({"retries": -1}, ValueError, "retries must be 0 or more, got -1"),
        ({"template": "{stem}.{ext}", "cancel": None}, TypeError, "a catalogue has no option cancel, template"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_any_work(
    separate, monkeypatch, tmp_path, options, error, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "connected", lambda _: pytest.fail("Ray was started"))
    write_manifest(Path("songs.csv"), [{"path": "a.wav"}])
    for name in ("other.csv", "other.parquet"):
        write_manifest(Path(name), [{"path": "a.wav", "vocals": "b.wav"}])
    before = Path("other.csv").read_bytes()
    with pytest.raises(error, match=message):
        separate("songs.csv", **options)
    assert not Path("stems").exists() and Path("other.csv").read_bytes() == before


@needs_ray
@pytest.mark.parametrize("name", ["stems.csv", "stems.parquet"])
def test_no_songs_are_done_at_once(separate, monkeypatch, tmp_path, name):
    monkeypatch.setattr(run, "connected", lambda _: pytest.fail("Ray was started"))
    (tmp_path / "songs.csv").write_text("path,genre\n")
    table = separate(tmp_path / "songs.csv", tmp_path / "stems", tmp_path / name)
    assert table.num_rows == 0 and table.column_names[:4] == ["path", "genre", *STEMS]
    assert read_manifest(tmp_path / name) == [] and os.listdir(tmp_path) == ["songs.csv", name]


@needs_ray
def test_a_manifest_of_stems_that_cannot_be_written_is_an_error_before_any_work(separate, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "connected", lambda _: pytest.fail("Ray was started"))
    manifest = write_manifest(tmp_path / "songs.csv", [{"path": "a.wav"}])
    with pytest.raises(OSError, match=r"songs\.csv/stems"):
        separate(manifest, tmp_path / "stems", manifest / "stems.csv")


@pytest.mark.parametrize(
    ("nodes", "songs", "wanted", "pool"),
    [
        ([(2, 0)], 20, {}, (2, 1, 0)),
        ([(8, 0)], 20, {"workers": 3}, (3, 2, 0)),
        ([(8, 0)], 2, {}, (2, 4, 0)),  # no more workers than songs, and all cores
        ([(4, 0), (4, 0), (4, 0)], 20, {"workers": 2}, (2, 4, 0)),  # 6 cores each would fit on no node
        ([(4, 0), (2, 0)], 20, {"workers": 3}, (3, 2, 0)),
        ([(16, 2)], 20, {}, (2, 8, 1)),
        ([(16, 2)], 20, {"device": "cpu"}, (16, 1, 0)),
        ([(16, 2)], 20, {"device": "auto", "gpus": 0}, (16, 1, 0)),
        ([(16, 2), (8, 0)], 20, {"device": "cuda"}, (2, 8, 1)),
        ([(16, 1)], 20, {"gpus": 0.1}, (10, 1, 0.1)),
        ([(16, 4)], 20, {"gpus": 2}, (2, 8, 2)),
        ([(2, 8)], 20, {}, (2, 1, 1)),  # each worker has a core
        ([(2.5, 0)], 20, {}, (2, 1, 0)),
    ],
)
def test_workers_share_out_cores_and_gpus(nodes, songs, wanted, pool):
    shared = shared_out([Node(*node) for node in nodes], songs, **wanted)
    assert shared == Pool(*pool) and shared.device == ("cuda" if pool[2] else "cpu")


@pytest.mark.parametrize(
    ("nodes", "wanted", "error", "message"),
    [
        (
            [(4, 0)],
            {"device": "cuda"},
            DeviceError,
            "no node of the Ray cluster has 1 GPU and a core .* 4 cores, 0 GPUs",
        ),
        ([(4, 0)], {"gpus": 0.5}, DeviceError, "no node of the Ray cluster has 0.5 GPU and a core"),
        ([(4, 1)], {"gpus": 2}, DeviceError, "no node of the Ray cluster has 2 GPU and a core"),
        ([(0, 1)], {}, DeviceError, "no node of the Ray cluster has 1 GPU and a core"),
        ([], {}, DeviceError, "no node of the Ray cluster has a core for a worker: it has none"),
        ([(4, 0)], {"workers": 5}, ValueError, "workers must be at most 4, for which the Ray cluster has room, got 5"),
        ([(4, 0)], {"workers": 0}, ValueError, "workers must be 1 or more, got 0"),
        ([(4, 1)], {"device": "cuda:0"}, ValueError, "device must be auto, cpu or cuda, got 'cuda:0'; Ray chooses"),
        ([(4, 1)], {"device": "cpu", "gpus": 1}, ValueError, "gpus_per_worker must be 0 with device 'cpu', got 1"),
        ([(4, 1)], {"device": "cuda", "gpus": 0}, ValueError, "gpus_per_worker must be above 0 with device 'cuda'"),
        ([(4, 1)], {"gpus": -0.5}, ValueError, "gpus_per_worker must be from 0 to 1 or a whole number, got -0.5"),
        ([(4, 1)], {"gpus": 1.5}, ValueError, "gpus_per_worker must be from 0 to 1 or a whole number, got 1.5"),
        (
            [(4, 1)],
            {"gpus": float("nan")},
            ValueError,
            "gpus_per_worker must be from 0 to 1 or a whole number, got nan",
        ),
    ],
)
def test_what_does_not_fit_on_the_cluster_is_an_error(nodes, wanted, error, message):
    with pytest.raises(error, match=message):
        shared_out([Node(*node) for node in nodes], 20, **wanted)


@needs_ray
@pytest.mark.parametrize(
    ("address", "variable", "expected"),
    [(None, "", None), ("auto", "", "auto"), ("10.0.0.1:6379", "", "10.0.0.1:6379"), (None, "10.0.0.1:6379", None)],
)
def test_a_ray_of_our_own_is_quiet_and_another_one_is_as_it_is(monkeypatch, address, variable, expected):
    ray = cluster.imported()
    started, handler = {}, signal.getsignal(signal.SIGTERM)

    def init(**options):
        started.update(options, environment=dict(os.environ))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does with a handler of its own

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: started.update(ended=True))
    monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "debug")
    with cluster.connected(address):
        assert started.get("address") == expected and ("address" in started) == bool(address or variable)
        assert started.get("include_dashboard") is (None if address or variable else False)
        assert started["environment"]["RAY_USAGE_STATS_ENABLED"] == os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "debug"  # what the user has set stays
        assert signal.getsignal(signal.SIGTERM) == handler and "ended" not in started
    assert started["ended"] and "RAY_USAGE_STATS_ENABLED" not in os.environ


@needs_ray
def test_no_cluster_at_an_address_is_a_device_error(monkeypatch):
    ray = cluster.imported()

    def init(**_):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(DeviceError, match=r"no Ray at 10\.0\.0\.1:6379: nobody answers"),
        cluster.connected("10.0.0.1:6379"),
    ):
        pytest.fail("connected")


class Local:
    """An actor in this process: its methods' `remote` is the call."""

    def __init__(self, actor):
        self.actor = actor

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def recruit(monkeypatch, tmp_path):
    """Makes a Worker in this process, with its Ledger."""
    monkeypatch.setattr(cluster.imported(), "get", lambda value: value)
    ledger = worker.Ledger()

    def make(**changes):
        work = worker.Work(
            str(tmp_path / "stems"), {"skip_existing": True}, None, "cpu", threads=1, retries=2, deaths=3
        )
        return worker.Worker(checkpoint(), Local(ledger), dataclasses.replace(work, **changes))

    make.ledger = ledger
    return make


def records(worker, *songs):
    """What becomes of songs of this path and folder."""
    import pyarrow

    rows = [{"index": i, "path": str(path), "folder": str(folder)} for i, (path, folder) in enumerate(songs)]
    made = worker(pyarrow.Table.from_pylist(rows)).to_pylist()
    assert [row["index"] for row in made] == list(range(len(songs)))
    assert [row["failure"] for row in made] == [b""] * len(songs)
    return [Record.from_json(row["record"]) for row in made]


@needs_ray
def test_workers_that_die_while_they_load_the_model_are_given_up(recruit, tmp_path):
    song = write_song(tmp_path / "song.wav"), "song"
    for _ in range(3):  # starts and dies
        assert recruit(deaths=3).failure is None
    records(recruit(deaths=4), song)  # one that comes to work: the count begins anew
    for _ in range(3):
        assert recruit(deaths=3).failure is None
    failed = recruit(deaths=3)
    assert isinstance(failed.failure, DeviceError) and "3 workers died one after the other" in str(failed.failure)


@needs_ray
def test_a_song_that_kills_workers_is_given_up(recruit, tmp_path):
    song = write_song(tmp_path / "song.wav"), "song"
    for _ in range(3):  # workers that began it and died
        recruit.ledger.begin(0)
    (record,) = records(recruit(retries=2), song)
    assert (record.error_type, record.attempts) == ("WorkerDied", 3) and not (tmp_path / "stems").exists()
    (record,) = records(recruit(retries=4), song)
    assert (record.error, record.attempts) == (None, 4)


@needs_ray
def test_a_song_is_not_blamed_for_the_death_over_its_neighbour(recruit, tmp_path):
    """In a block of songs, those before the deadly one come again each time."""
    songs = [(write_song(tmp_path / f"{name}.wav"), name) for name in "ab"]
    for _ in range(3):
        records(recruit(), songs[0])
        recruit.ledger.begin(1)  # and dies
    first, deadly = records(recruit(retries=2), *songs)
    assert first.error is None and first.attempts == 1 and first.skipped == [*STEMS]
    assert deadly.error_type == "WorkerDied" and deadly.attempts == 3


@needs_ray
def test_a_song_that_a_worker_believed_dead_finishes_is_there_already(recruit, monkeypatch, tmp_path):
    separate_file, calls = Separator.separate_file, []

    def beaten(self, *arguments, **options):
        result = separate_file(self, *arguments, **options)
        calls.append(result)
        if len(calls) == 1:  # the other one's, just as this one wanted to give its files their names
            raise OutputExistsError("vocals.wav: exists already")
        return result

    monkeypatch.setattr(Separator, "separate_file", beaten)
    (record,) = records(recruit(), (write_song(tmp_path / "song.wav"), "song"))
    assert record.error is None and record.skipped == [*STEMS] and len(calls) == 2


@needs_ray
def test_workers_stop_when_they_are_told(recruit, monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "LOOK_UP_S", 0.0)
    long = write_song(tmp_path / "long.wav", LONG_S), "long"
    here = recruit()
    look_up = here._look_up

    def told(done_s, total_s):
        assert recruit.ledger.stop() == 1, "one song is at work"
        look_up(done_s, total_s)

    here._look_up = told
    stopped, not_begun = records(here, long, (write_song(tmp_path / "b.wav"), "b"))
    assert stopped.error_type == not_begun.error_type == "Cancelled" and not_begun.attempts == 0
    assert recruit.ledger.stop() == 0 and not (tmp_path / "stems").exists()


@needs_ray
def test_an_error_that_nobody_thought_of_is_one_songs(recruit, monkeypatch, tmp_path):
    here = recruit()
    monkeypatch.setattr(Separator, "separate_file", lambda *_, **__: 1 / 0)
    (record,) = records(here, (write_song(tmp_path / "song.wav"), "song"))
    assert (record.error_type, record.error) == ("ZeroDivisionError", "division by zero")


def test_records_keep_the_figures_of_stems_that_were_there(tmp_path):
    earlier = Record("a", {"vocals": "v", "accompaniment": "x"}, peaks={"vocals": 0.5}, elapsed_s=9.0, worker_pid=7)
    journal = Journal(tmp_path / "new" / "stems.parquet")
    with journal:
        journal.append(Record("b", error_type="AudioFileError", error="b: …"))
        journal.append(earlier)
    with journal.path.open("a") as file:
        file.write(earlier.to_json()[:20])
    with journal:
        journal.append(Record("c", {"vocals": "w"}))
    known = journal.read()
    assert known == {"v": earlier, "x": earlier, "w": Record("c", {"vocals": "w"})}
    whole = Record("a", dict(earlier.outputs), skipped=["vocals", "accompaniment"], elapsed_s=0.1)
    whole.complete_from(known)
    assert whole == Record("a", earlier.outputs, whole.skipped, peaks={"vocals": 0.5}, elapsed_s=9.0, worker_pid=7)
    half = Record("a", {"vocals": "v", "accompaniment": "new"}, ["vocals"], peaks={"accompaniment": 0.1}, elapsed_s=0.1)
    half.complete_from(known)
    assert half.peaks == {"vocals": 0.5, "accompaniment": 0.1} and half.elapsed_s == 0.1
    journal.remove()
    assert journal.read() == {}


@needs_ray
def test_songs_that_are_done_are_gone_through_together():
    songs = [Song(f"/{i}.wav", str(i)) for i in range(250)]
    done = {song.folder for song in songs if song.folder != "7"}
    blocks = run._blocks(songs, done)
    assert [len(block) for block in blocks] == [100, 100, 49, 1]
    assert sorted(row["index"] for block in blocks for row in block.to_pylist()) == list(range(250))
    assert blocks[-1].to_pylist() == [{"index": 7, "path": "/7.wav", "folder": "7"}]
