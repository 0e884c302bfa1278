"""Many songs: which are found, where their stems go, several at a time, and runs that are cut off."""

import gc
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile
import torch

from pyunetsep import AudioFileError, Cancelled, OutputExistsError, Separator
from pyunetsep.audio import AudioFormat, AudioWriter
from pyunetsep.cli import main
from pyunetsep.song_files import OutputTemplate, Song
from pyunetsep.song_search import find_songs
from pyunetsep.stream import StemStream
from pyunetsep.workers import in_threads
from tests.tiny import checkpoint, noise, write_model

RATE = 8_000


def write_song(path, seed=0, samples=4_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(1, samples, seed=seed)[0].numpy(), RATE)
    return path


@pytest.fixture
def music(tmp_path, monkeypatch):
    """A folder of songs, in which the current folder is."""
    for name in (
        "b.wav",
        "a.flac",
        "live/c.ogg",
        "live/1999/d.WAV",
        "live/.hidden/e.wav",
        ".f.wav",
        "stems/b/vocals.wav",
    ):
        write_song(tmp_path / "music" / name)
    (tmp_path / "music" / "cover.jpg").write_bytes(b"no music")
    (tmp_path / "music" / ".b.wav.12345678.part").write_bytes(b"left by a killed run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "music"


@pytest.fixture(scope="module")
def separator():
    return Separator(checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


# ---- which songs


def test_folders_patterns_and_files(music):
    assert find_songs(["music"]) == [Song("music/a.flac"), Song("music/b.wav")]
    below = [Song("music/live/c.ogg", "live"), Song("music/live/1999/d.WAV", "live/1999")]
    assert find_songs(["music"], recursive=True, besides="music/stems") == [*find_songs(["music"]), *below]
    assert Song("music/stems/b/vocals.wav", "stems/b") in find_songs(["music"], recursive=True)
    assert find_songs(["music/*.wav", "music/a.flac"]) == [Song("music/b.wav"), Song("music/a.flac")]
    assert Song("music/live/1999/d.WAV") in find_songs(["music/**/*.WAV"])
    assert find_songs(["none.wav"]) == [Song("none.wav")]  # whoever opens it will say so
    os.rename("music/b.wav", "music/[b].wav")
    assert find_songs(["music/[b].wav"]) == [Song("music/[b].wav")]  # a file of that name comes first


def test_stems_of_the_last_run_are_no_songs_and_pipes_are_not_waited_for(music):
    assert Song("music/stems/b/vocals.wav") not in find_songs(["music/**/*.wav"], besides="music/stems")
    assert Song("music/b.wav") in find_songs(["music/**/*.wav"], besides="music/stems")
    assert find_songs(["music/*.wav"], besides="music") == [Song("music/b.wav")]  # where the search begins
    os.mkfifo("music/pipe.wav")
    os.symlink("nowhere", "music/link.wav")
    names = [song.path for song in find_songs(["music"])]
    assert "music/pipe.wav" not in names and "music/link.wav" in names
    for folder in ("", "/etc", "../up"):
        with pytest.raises(ValueError, match="folder: got"):
            Song("a.wav", folder)


def test_a_failed_song_is_not_kept(separator, tmp_path):
    bad = noise(1, 60_000)[0].numpy()
    bad[50_000] = float("nan")
    songs = [tmp_path / f"{i}.wav" for i in range(3)]
    for song in songs:
        soundfile.write(song, bad, RATE, subtype="FLOAT")
    os.mkfifo(tmp_path / "pipe.wav")
    results = list(separator.separate_files([*songs, tmp_path / "pipe.wav"], tmp_path / "out"))
    assert all(result.error for result in results) and "is a pipe" in str(results[-1].error)
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is StemStream]


def test_the_folder_of_the_stems_is_not_searched_through(music):
    with pytest.raises(OutputExistsError, match="music: is the folder of the stems too"):
        find_songs(["music"], recursive=True, besides="music/../music")
    assert Song("music/b.wav") in find_songs(["music"], besides="music")  # whose own sub-folders are not looked into


def test_nothing_found_is_an_error(music):
    (music / "empty").mkdir()
    with pytest.raises(AudioFileError, match=r"music/empty: no audio files in this folder; --recursive looks"):
        find_songs(["music", "music/empty"])
    with pytest.raises(AudioFileError, match=r"music/empty: no audio files in this folder$"):
        find_songs(["music/empty"], recursive=True)
    with pytest.raises(AudioFileError, match=r"music/\*\.m4a: no file matches"):
        find_songs(["music/*.m4a"])


# ---- where stems go


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (OutputTemplate.DEFAULT, "out/live/song/vocals.flac"),
        ("{name} ({stem}).{ext}", "out/song (vocals).flac"),
        ("{stem}/{folder}/{name}.{ext}", "out/vocals/live/song.flac"),
    ],
)
def test_templates(template, path):
    paths = OutputTemplate(template).paths(
        "out", Song("music/live/song.mp3", "live"), ["vocals"], AudioFormat("FLAC", "PCM_16")
    )
    assert paths == {"vocals": Path(path)}


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{name}/{stem}", "want {stem} and {ext}"),
        ("{name}.{ext}", "want {stem} and {ext}"),
        ("{artist}/{stem}.{ext}", "no other fields than {folder}, {name}, {stem}, {ext}"),
        ("{stem!r}.{ext}", "no other fields"),
        ("{stem:>9}.{ext}", "no other fields"),
        ("{stem.__class__}.{ext}", "no other fields"),
        ("../{stem}.{ext}", "within the output folder"),
        ("/tmp/{stem}.{ext}", "within the output folder"),
        ("{stem.{ext}", "template: got"),
    ],
)
def test_templates_that_do_not_work(separator, music, template, problem):
    with pytest.raises(ValueError, match=rf"^template: got .*{re.escape(problem.removeprefix('template: got'))}"):
        separator.separate_files([music / "b.wav"], "out", template=template)
    with pytest.raises(ValueError, match="template"):
        separator.separate_file(music / "b.wav", "out", template=template)
    assert not Path("out").exists()


def test_batches_that_would_overwrite_are_refused_before_any_work(separator, music):
    write_song(music / "b.flac")
    flat = "{name} {stem}.{ext}"
    for songs, template, problem in (
        (["music/b.wav", "music/b.flac"], OutputTemplate.DEFAULT, "would both write to out/b/vocals"),
        ([Song("music/live/c.ogg", "live"), "x/c.wav"], flat, "would both write to out/c vocals"),
        (["music/b.wav", "music/../music/b.wav"], flat, "given twice|both write"),
        (["b.wav", "out/b vocals.mp3"], flat, "lies where a stem of b.wav would be written"),
    ):
        with pytest.raises(OutputExistsError, match=problem):
            separator.separate_files(songs, "out", template=template)
    os.makedirs("out2/b")
    os.rename(write_song(music / "song.wav"), "out2/b/vocals.wav")
    os.symlink(os.path.abspath("out2/b/vocals.wav"), "link.wav")
    with pytest.raises(OutputExistsError, match=r"link\.wav lies where a stem of music/b.wav would be written"):
        separator.separate_files(["music/b.wav", "link.wav"], "out2", overwrite=True)
    # the same names in different folders are no conflict
    separator.separate_files([Song("music/live/c.ogg", "live"), Song("music/c.ogg")], "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("taken", ["the folder", "the one above"])
def test_a_folder_that_another_song_takes_away(separator, music, monkeypatch, taken):
    """A song that failed removes what it made, which the next may just have found there."""
    begin, moments = AudioWriter.__init__, [1, 2]

    def too_late(writer, path, **options):
        if moments and moments.pop():
            Path(path).parent.rmdir()
            if taken == "the one above":
                Path(path).parent.parent.rmdir()
        begin(writer, path, **options)

    monkeypatch.setattr(AudioWriter, "__init__", too_late)
    result = separator.separate_file("music/b.wav", "out")
    assert all(path.exists() for path in result.outputs.values()) and not moments


def test_a_folder_that_is_taken_away_while_it_is_looked_at(separator, music, monkeypatch):
    Path("out/b").mkdir(parents=True)
    make, moments = Path.mkdir, [1]

    def too_late(path, **options):  # as pathlib does it: it exists, but is no folder any more
        if path.name == "b" and moments:
            moments.pop()
            path.rmdir()
            raise FileExistsError(17, "File exists")
        make(path, **options)

    monkeypatch.setattr(Path, "mkdir", too_late)
    assert all(path.exists() for path in separator.separate_file("music/b.wav", "out").outputs.values())
    Path("out/c").write_text("no folder")
    with pytest.raises(AudioFileError, match="out/c: the output folder cannot be made"):
        separator.separate_file(write_song(music / "c.wav"), "out")


def test_a_folder_that_is_taken_away_again_and_again_is_an_error(separator, music, monkeypatch):
    begin = AudioWriter.__init__

    def too_late(writer, path, **options):
        Path(path).parent.rmdir()
        begin(writer, path, **options)

    monkeypatch.setattr(AudioWriter, "__init__", too_late)
    with pytest.raises(AudioFileError, match=r"vocals\.wav: no such file or directory"):
        separator.separate_file("music/b.wav", "out")


def test_a_link_that_leads_nowhere_is_there_already(separator, music):
    Path("out/b").mkdir(parents=True)
    os.symlink("nowhere", "out/b/vocals.wav")
    for skip in (False, True):
        with pytest.raises(OutputExistsError, match=r"vocals\.wav: exists already, as a link that leads nowhere"):
            separator.separate_file("music/b.wav", "out", skip_existing=skip)
    assert os.listdir("out/b") == ["vocals.wav"]
    separator.separate_file("music/b.wav", "out", overwrite=True)
    assert not Path("out/b/vocals.wav").is_symlink() and not Path("out/b/nowhere").exists()


# ---- several at a time


def test_several_at_a_time_make_what_one_at_a_time_makes(separator, tmp_path):
    songs = [write_song(tmp_path / f"{i}.wav", seed=i, samples=1_000 * (i + 1)) for i in range(9)]
    (tmp_path / "bad.wav").write_text("no music " * 99)
    songs.insert(3, tmp_path / "bad.wav")
    alone = list(separator.separate_files(songs, tmp_path / "alone"))
    threads, seen = torch.get_num_threads(), set()
    together = list(
        separator.separate_files(
            songs, tmp_path / "together", workers=3, progress=lambda *_: seen.add(threading.get_ident())
        )
    )
    assert torch.get_num_threads() == threads
    assert threading.get_ident() not in seen
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert sorted(result.path for result in together) == sorted(map(str, songs))
    for results in (alone, together):
        assert [result.path for result in results if result.error] == [str(tmp_path / "bad.wav")]


def test_songs_are_really_under_way_together():
    meeting = threading.Barrier(3, timeout=30)
    assert sorted(in_threads(lambda item, stop: (meeting.wait(), item)[1], [1, 2, 3], workers=3)) == [1, 2, 3]


def test_leaving_stops_what_is_under_way_and_leaves_nothing(separator, tmp_path):
    songs = [write_song(tmp_path / f"{i}.wav", seed=i, samples=400_000) for i in range(6)]
    results = separator.separate_files(songs, tmp_path / "out", workers=2)
    first = next(results)
    results.close()
    done = contents(tmp_path / "out")
    assert all(name.endswith(".wav") and "/." not in f"/{name}" for name in done)
    assert 2 <= len(done) < 12 and all(
        str(path.relative_to(tmp_path / "out")) in done for path in first.outputs.values()
    )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("song")]


def test_a_cancelled_batch_says_so(separator, tmp_path):
    songs = [write_song(tmp_path / f"{i}.wav", seed=i) for i in range(4)]
    cancel = threading.Event()
    cancel.set()
    for workers in (1, 2):
        with pytest.raises(Cancelled):
            list(separator.separate_files(songs, tmp_path / "out", workers=workers, cancel=cancel))
        assert not contents(tmp_path / "out")


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, None])
def test_numbers_of_workers_that_are_none(separator, workers):
    with pytest.raises(ValueError, match="workers must be a whole number from 1 on"):
        separator.separate_files(["a.wav"], workers=workers)


# ---- the command


def test_a_folder_with_a_template(music, model, capsys):
    arguments = [
        "separate",
        "music",
        "--recursive",
        "-m",
        str(model),
        "-o",
        "music/stems",
        "-t",
        "{folder}/{name}-{stem}.{ext}",
    ]
    assert main([*arguments, "--json", "--jobs", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["input"] for entry in report["results"]] == [
        "music/a.flac", "music/b.wav", "music/live/c.ogg", "music/live/1999/d.WAV"
    ]  # fmt: skip
    made = contents("music/stems")
    assert "live/1999/d-vocals.wav" in made and "live/c-accompaniment.ogg" in made and "a-vocals.flac" in made
    assert main([*arguments, "--skip-existing", "--json"]) == 0  # its own stems are not songs
    again = json.loads(capsys.readouterr().out)["results"]
    assert len(again) == 4 and all(entry["skipped"] == ["vocals", "accompaniment"] for entry in again)
    assert contents("music/stems") == made


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["music", "--jobs", "0"], 2, "--jobs: want a whole number from 1 on, got '0'"),
        (["music", "--latency", "1"], 2, "--latency is for -o -"),
        (["music", "-s", "vocals", "-o", "-"], 2, "-o - writes the stem of one SONG, found 2"),
        (["music/b.wav", "-s", "vocals", "-o", "-", "-j", "2"], 2, "are for stems in files, not for -o -"),
        (["music", "-t", "{stem}"], 2, "template: got '{stem}'"),
        (["music/*.m4a"], 1, "music/*.m4a: no file matches this pattern"),
    ],
)
def test_mistakes(music, model, capsys, arguments, code, message):
    try:
        found = main(["separate", *arguments, "-m", str(model)])
    except SystemExit as usage:
        found = usage.code
    assert found == code and message in capsys.readouterr().err


def killed_runs(tmp_path, model, songs, kills, seed):
    """Separates with --skip-existing, killed at random moments so many times, then to the end; the final exit code."""
    command = [sys.executable, "-m", "pyunetsep", "separate", str(songs), "-m", str(model), "-o", str(tmp_path / "out")]
    command += ["--skip-existing", "--jobs", "2", "-f", "mp3"]
    rng = random.Random(seed)
    started = time.monotonic()
    undisturbed = subprocess.run([*command, "-o", str(tmp_path / "undisturbed")], check=True, capture_output=True)
    whole_s = time.monotonic() - started
    assert not undisturbed.stderr
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.0) * whole_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "out").rglob("*.mp3"):
            if not path.name.startswith("."):  # what has its name is whole
                expected = tmp_path / "undisturbed" / path.relative_to(tmp_path / "out")
                assert path.read_bytes() == expected.read_bytes()
    return subprocess.run(command, check=False).returncode


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("songs", "kills"), [(12, 2), pytest.param(100, 20, marks=pytest.mark.slow)], ids=["twice", "twenty times"]
)
def test_killed_runs_go_on(tmp_path, model, songs, kills):
    for i in range(songs):
        write_song(tmp_path / "songs" / f"{i}.mp3", seed=i, samples=60_000)
    assert killed_runs(tmp_path, model, tmp_path / "songs", kills, seed=songs) == 0
    whole = {name: data for name, data in contents(tmp_path / "out").items() if not Path(name).name.startswith(".")}
    assert whole == contents(tmp_path / "undisturbed")
    assert len(whole) == 2 * songs


# ---- the command, from pipe to pipe


def piped(arguments, model, content):
    command = [sys.executable, "-m", "pyunetsep", "separate", *arguments, "-m", str(model), "-s", "vocals", "-o", "-"]
    return subprocess.run(command, input=content, capture_output=True, timeout=120, check=False)


def test_a_piped_stem_is_the_one_of_the_folder(music, model):
    write_song(Path("song.wav"), samples=30_000)
    assert main(["separate", "song.wav", "-m", str(model)]) == 0
    done = piped(["-"], model, Path("song.wav").read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    made, expected = soundfile.read(io.BytesIO(done.stdout))[0], soundfile.read("stems/song/vocals.wav")[0]
    assert abs(made - expected).max() <= 2**-15


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (["-"], b"no music " * 99, "standard input: not an audio file"),
        (["-", "--latency", "0.01"], None, "standard input: --latency must be at least 0.0"),
        (["-", "--start", "99"], None, "standard input: --start: got 99, but standard input ends at 0.5 s"),
        (["-", "-f", "mp3", "--subtype", "FLOAT"], None, "MP3 has no subtype FLOAT"),
        (["none.wav"], b"", "none.wav: no such file"),
    ],
)
def test_what_goes_wrong_in_a_pipe_is_one_message_and_exit_code_1(music, model, arguments, content, message):
    write_song(Path("song.wav"))
    done = piped(arguments, model, Path("song.wav").read_bytes() if content is None else content)
    assert done.returncode == 1 and done.stdout == b""
    assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1
