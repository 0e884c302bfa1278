"""Catalogues on a local Ray of two workers, one of which is killed while it writes stems."""

import csv
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

import pytest
import soundfile

from pyunetsep import DataError, OutputExistsError, Separator
from pyunetsep.catalogue import cluster, run
from pyunetsep.catalogue.manifest import Journal
from pyunetsep.checkpoint import save_checkpoint
from pyunetsep.cli import main
from pyunetsep.config import SeparatorConfig
from tests.tiny import INFO, SPLEETER_LIKE, checkpoint, noise

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is missing: pip install 'pyunetsep[ray]'")
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="whom to kill is read from Linux's /proc")
RATE_HZ = 8_000
STEMS = ("vocals", "accompaniment")
LONG_S = 600.0  # of noise: takes the tiny model a second, long enough to be caught in the act


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    tiny = checkpoint(SPLEETER_LIKE)
    save_checkpoint(path, tiny.config, {stem: net.state_dict() for stem, net in tiny.networks.items()}, INFO)
    return path


@pytest.fixture(scope="module")
def ray():
    """A Ray of two cores, and nothing left of it."""
    ray = cluster.imported()
    home = tempfile.mkdtemp(prefix="ray")  # short, for the names of sockets end at 107 bytes
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.QUIET.items():
            patch.setenv(name, value)
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20, _temp_dir=home
        )
        yield ray
        ray.shutdown()
    shutil.rmtree(home, ignore_errors=True)


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


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


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
        output = f"by number/{i}/{path.stem}" if i % 3 == 0 else ""
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
        write_song(tmp_path / row["path"], LONG_S if i in (5, 6, 7) else 0.5, seed=i)
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
    driver = subprocess.Popen([*map(str, command), "--address", ray.get_runtime_context().gcs_address])
    folders = [stems / f"song{i}" for i in range(12)]
    until(lambda: any(writers(folder) for folder in folders[5:8]) or driver.poll() is not None)
    driver.kill()
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
def test_an_interrupted_run_on_a_ray_of_its_own_leaves_nothing(model, tmp_path, number):
    songs = [{"path": str(write_song(tmp_path / f"song{i}.wav", LONG_S, seed=i))} for i in range(6)]
    manifest, stems = write_manifest(tmp_path / "songs.csv", songs), tmp_path / "stems"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    before = {*ray_processes(b"ray::")}
    command = [sys.executable, "-m", "pyunetsep", "catalogue", manifest, "-o", stems, "-m", model, "--workers", "1"]
    done = subprocess.Popen([*map(str, command)], env=environment, stdout=-1, stderr=-1, text=True)
    until(lambda: writers(stems / "song1") or done.poll() is not None)
    done.send_signal(number)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out, err) == (130, "", "pyunetsep: interrupted; nothing half-written is left\n")
    assert sorted(path.name for path in stems.iterdir()) == ["manifest.parquet.journal", "song0"]
    assert not list(stems.rglob(".*"))
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
        ("songs.csv", "path\na/x.wav\nb/x.mp3\n", OutputExistsError, r"line 3: .*b/x\.mp3 and .*a/x\.wav \(line 2\)"),
        ("songs.csv", "path,output\na.wav,x\nb.wav,./y/../x/\n", OutputExistsError, "would both write to"),
        ("songs.csv", "path\na.wav\nstems/a/vocals.wav\n", OutputExistsError, "line 3: .* lies where the stems of"),
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
        ({"retries": -1}, ValueError, "retries must be 0 or more, got -1"),
        ({"skip_existing": True, "cancel": None}, TypeError, "a catalogue has no option cancel, skip_existing"),
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
        separate("songs.csv", "stems", **options)
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
