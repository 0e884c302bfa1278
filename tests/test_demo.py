"""The demo but for what a browser shows: limits, errors for people, one song at a time, and that nothing stays."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import namedtuple
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pyunetsep import AudioFileError, Cancelled, Separator
from pyunetsep.cli import main
from pyunetsep.demo import DemoServer, Limits, Studio
from tests.tiny import SPLEETER_LIKE, checkpoint, noise, write_model

RATE_HZ = 8_000
SECONDS = 60


@pytest.fixture(scope="module")
def separator():
    pytest.importorskip("matplotlib")
    return Separator(checkpoint(SPLEETER_LIKE), device="cpu")


@pytest.fixture
def studio(separator, tmp_path):
    (tmp_path / "studio").mkdir()
    studio = Studio(separator, tmp_path / "studio", Limits(max_s=10.0))
    yield studio
    studio.close()
    assert list((tmp_path / "studio").iterdir()) == []


def upload(studio, name="song.wav", wave=None, subtype="PCM_16", rate_hz=RATE_HZ):
    """A song where Gradio puts one."""
    wave = noise(2, 20_000).numpy() if wave is None else wave
    path = studio.uploads / f"hash of {name}" / name
    path.parent.mkdir()
    soundfile.write(path, wave.T, rate_hz, subtype=subtype, format="WAV")
    return path


def finished(job):
    wait([job.result], SECONDS)
    return job.result.result(0)


def failed(studio, path):
    """What the page says; nothing of the song is left."""
    job = studio.submit("me", path)
    wait([job.result], SECONDS)
    assert job.result.exception() is not None
    assert not job.folder.exists()
    message = studio.explain(job)
    assert str(studio.folder) not in message and "Traceback" not in message and "\n" not in message
    return message


@pytest.fixture
def slow(separator, monkeypatch):
    """Separation waits in the middle, until `go` is set or the job is cancelled."""
    started, go = threading.Event(), threading.Event()
    separate_file = Separator.separate_file

    def wait_first(self, path, output, *, progress, cancel, **options):
        started.set()
        while not (go.is_set() or cancel.is_set()):
            progress(1.0, 4.0)
            time.sleep(0.01)
        return separate_file(self, path, output, progress=progress, cancel=cancel, **options)

    monkeypatch.setattr(Separator, "separate_file", wait_first)
    yield namedtuple("Slow", "started go")(started, go)
    go.set()


# songs


def test_a_song_becomes_waves_and_pictures(studio):
    path = upload(studio)
    wave = soundfile.read(path)[0]
    job = studio.submit("me", path)
    song = finished(job)
    assert (song.name, song.sample_rate_hz, song.channels, song.samples) == ("song", RATE_HZ, 2, 20_000)
    assert song.stems == ("vocals", "accompaniment") and song.notes == ()
    names = {"mixture", "vocals", "accompaniment"}
    assert song.files.keys() == {f"{name}.{kind}" for name in names for kind in ("wav", "png")} | {"spectrograms.png"}
    waves = {name: soundfile.read(song.files[f"{name}.wav"])[0] for name in names}
    assert np.array_equal(waves["mixture"], wave)
    assert np.abs(waves["vocals"] + waves["accompaniment"] - wave).max() <= 2 * 2**-15
    for name, file in song.files.items():
        assert studio.file(job.token, name) == (file, song)
    assert studio.explain(job) == ""
    assert not path.parent.exists() and not job.upload.exists()  # only what the page shows is kept


@pytest.mark.parametrize("name", ["upload.wav", "stems.wav", "mixture.wav", "...wav", "söng <b>.wav"])
def test_songs_of_any_name(studio, name):
    song = finished(studio.submit("me", upload(studio, name)))
    assert all(file.is_file() for file in song.files.values())


@pytest.mark.filterwarnings("ignore::pyunetsep.ClippingWarning")
def test_loud_stems_are_clipped_and_the_page_says_so(studio, separator):
    song = finished(studio.submit("me", upload(studio, wave=40 * noise(1, 20_000).numpy(), subtype="FLOAT")))
    assert song.notes and all("of full scale, are clipped" in note for note in song.notes)


def test_a_song_that_is_replaced_goes(studio):
    first, other = studio.submit("me", upload(studio)), studio.submit("you", upload(studio, "other.wav"))
    finished(first)
    second = studio.submit("me", upload(studio, "second.wav"))
    assert studio.file(first.token, "vocals.wav") is None and not first.folder.exists()
    finished(second)
    finished(other)
    assert studio.file(other.token, "vocals.wav") is not None


@pytest.mark.parametrize("name", ["no.wav", "../uploads", "../../secret", "vocals", ""])
def test_only_a_songs_own_files_are_given(studio, name):
    job = studio.submit("me", upload(studio))
    finished(job)
    assert studio.file(job.token, name) is None
    assert studio.file("no-such-token", "vocals.wav") is None


# what is refused


def test_what_is_no_audio_is_named_without_a_path(studio):
    path = studio.uploads / "text.mp3"
    path.write_text("no music " * 50)
    assert failed(studio, path).startswith("text.mp3: not an audio file")


def test_a_truncated_song(studio):
    path = upload(studio)
    os.truncate(path, path.stat().st_size // 2)
    assert failed(studio, path).startswith("song.wav: cut off: its header promises 20000 samples")


def test_nan(studio):
    wave = noise(1, 9_000).numpy()
    wave[0, 8_000] = np.nan
    assert failed(studio, upload(studio, wave=wave, subtype="FLOAT")).startswith("song.wav: ")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (0, "song.wav: holds no sound"),
        (5_000, "song.wav: is silent, there is nothing to separate"),
        (10 * RATE_HZ + 1, "song.wav: lasts 0.2 minutes; at most 0.166667 are taken here"),
    ],
)
def test_songs_without_sound_and_songs_that_are_too_long(studio, samples, message):
    assert failed(studio, upload(studio, wave=np.zeros((1, samples)))) == message


def test_the_longest_song_is_taken(studio):
    finished(studio.submit("me", upload(studio, wave=noise(1, 10 * RATE_HZ).numpy())))


def test_a_disk_that_is_too_small_is_found_out_before(studio, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2e6, 1.9e6, 1e5))
    message = failed(studio, upload(studio))
    assert message == "song.wav: needs 0.2 MB of disk, 0.1 MB are free"


def test_a_disk_that_fills_up(studio, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr("pyunetsep.demo.studio.draw_picture", full)
    assert "No space left on device" in failed(studio, upload(studio))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "song.wav: .*out of memory; a smaller batch_patches or device='cpu'"),
        (ZeroDivisionError("a bug"), "song.wav: an unexpected ZeroDivisionError; the terminal"),
    ],
)
def test_what_nobody_expected_is_no_traceback_on_the_page(studio, monkeypatch, error, message, caplog):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Separator, "separate_file", fail)
    assert re.match(message, failed(studio, upload(studio)))
    assert ("a bug" in caplog.text) == isinstance(error, ZeroDivisionError)
    monkeypatch.undo()
    finished(studio.submit("me", upload(studio, "next.wav")))  # and the studio goes on


def test_an_upload_that_is_gone(studio):
    with pytest.raises(FileNotFoundError):
        studio.submit("me", studio.uploads / "gone.wav")
    assert [path.name for path in studio.folder.iterdir()] == ["uploads"]


# one at a time


def test_one_song_at_a_time_in_the_order_they_came(studio, slow):
    jobs = [studio.submit(str(i), upload(studio, f"{i}.wav")) for i in range(3)]
    assert slow.started.wait(SECONDS)
    assert [studio.songs_before(job) for job in jobs] == [0, 1, 2]
    assert [job.stage for job in jobs[1:]] == ["waiting", "waiting"]
    slow.go.set()
    ends = []
    for job in jobs:
        finished(job)
        ends.append([other.result.done() for other in jobs])
    assert [studio.songs_before(job) for job in jobs] == [0, 0, 0]
    assert ends[0][0] and ends[2] == [True, True, True]


def test_progress_goes_up(studio, slow):
    job = studio.submit("me", upload(studio))
    assert slow.started.wait(SECONDS)
    while job.stage == "reading":
        time.sleep(0.01)
    assert (job.stage, job.share) == ("separating", 0.25)
    slow.go.set()
    finished(job)
    assert job.stage == "drawing"


def test_cancelling_stops_what_runs_and_what_waits_and_leaves_nothing(studio, slow):
    running, waiting = studio.submit("me", upload(studio)), studio.submit("you", upload(studio, "other.wav"))
    assert slow.started.wait(SECONDS)
    studio.cancel("you")
    assert waiting.result.cancelled() and not waiting.folder.exists() and not running.result.done()
    studio.cancel("me")
    wait([running.result], SECONDS)
    assert studio.explain(running) == studio.explain(waiting) == ""
    studio._worker.submit(lambda: None).result(SECONDS)  # the worker has cleaned up
    assert [path.name for path in studio.folder.iterdir()] == ["uploads"]


def test_a_cancel_after_the_end_keeps_the_song(studio):
    job = studio.submit("me", upload(studio))
    finished(job)
    studio.cancel("me")
    assert studio.file(job.token, "vocals.wav") is not None
    studio.forget("me")
    assert studio.file(job.token, "vocals.wav") is None and not job.folder.exists()


def test_a_page_that_closes_in_the_middle_leaves_nothing(studio, slow):
    job = studio.submit("me", upload(studio))
    assert slow.started.wait(SECONDS)
    studio.forget("me")
    wait([job.result], SECONDS)
    studio._worker.submit(lambda: None).result(SECONDS)
    assert [path.name for path in studio.folder.iterdir()] == ["uploads"]


def test_a_song_that_arrives_after_its_page_was_closed_is_not_taken(studio):
    path = upload(studio)
    studio.leave("me")
    with pytest.raises(Cancelled, match="closed"):
        studio.submit("me", path)
    assert [item for item in studio.folder.rglob("*") if item.is_file()] == []
    finished(studio.submit("you", upload(studio, "other.wav")))


def test_closing_stops_a_song_in_the_middle(separator, slow, tmp_path):
    studio = Studio(separator, tmp_path)
    jobs = [studio.submit(str(i), upload(studio, f"{i}.wav")) for i in range(2)]
    assert slow.started.wait(SECONDS)
    studio.close()
    assert all(job.result.done() for job in jobs) and list(tmp_path.iterdir()) == []


# time


def test_files_go_when_they_were_not_used_for_long(separator, tmp_path):
    studio = Studio(separator, tmp_path, Limits(keep_s=3600.0))
    old, used = studio.submit("old", upload(studio)), studio.submit("used", upload(studio, "used.wav"))
    forgotten, fresh = upload(studio, "forgotten.wav"), upload(studio, "fresh.wav")
    finished(old)
    finished(used)
    for job in (old, used):
        job.last_used_s -= 3700.0
    os.utime(forgotten, (time.time() - 3700, time.time() - 3700))
    assert studio.file(used.token, "mixture.wav") is not None  # this is use
    studio.sweep()
    assert not old.folder.exists() and studio.file(old.token, "mixture.wav") is None
    assert studio.file(used.token, "mixture.wav") is not None
    assert not forgotten.exists() and fresh.exists()
    studio.close()


def test_the_sweeper_sweeps(separator, tmp_path):
    studio = Studio(separator, tmp_path, Limits(keep_s=0.05))
    job = studio.submit("me", upload(studio))
    deadline = time.monotonic() + SECONDS
    while job.folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not job.folder.exists()
    studio.close()


# over HTTP


@pytest.fixture
def gradio():
    return pytest.importorskip("gradio", reason="needs Gradio: pip install 'pyunetsep[demo]'")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SECONDS) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def post(url, name, content):
    """As a form sends a file."""
    boundary = "a-boundary"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = part.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(url, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_serves_songs_and_nothing_else_and_leaves_nothing(gradio, separator, temporary, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    asked = []
    connect = socket.socket.connect

    def note(self, address):
        asked.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    with DemoServer(separator, port=0, limits=Limits(max_bytes=100_000)) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert Path(os.environ["GRADIO_TEMP_DIR"]).is_relative_to(temporary)
        code, _, page = get(server.url)
        assert code == 200 and b"stem-player" in page and b"Songs of up to 0.0953674 MB and 30 minutes" in page

        job = server.studio.submit("me", upload(server.studio, "söng.wav"))
        song = finished(job)
        url = f"{server.url}songs/{job.token}/"
        code, headers, wave = get(f"{url}vocals.wav")
        assert code == 200 and wave == song.files["vocals.wav"].read_bytes()
        assert headers["cache-control"] == "no-store"
        assert "s%C3%B6ng%20-%20vocals.wav" in headers["content-disposition"]
        code, headers, piece = get(f"{url}vocals.wav", Range="bytes=40-99")
        assert (code, piece, headers["content-length"]) == (206, wave[40:100], "60")
        assert get(f"{url}vocals.wav", Range="bytes=40-99999999")[2] == wave[40:]
        assert get(f"{url}vocals.png")[2].startswith(b"\x89PNG")

        for path in ("songs/x/vocals.wav", f"songs/{job.token}/x", f"songs/{job.token}/..%2f..%2fuploads", "docs"):
            assert get(server.url + path)[0] in (404, 405), path
        assert get(f"{server.url}gradio_api/file={song.files['vocals.wav'].parent.parent.parent.parent}")[0] in (
            403,
            404,
        )
        assert get(f"{server.url}gradio_api/file=/etc/hostname")[0] == 403
        assert get(server.url, Host="evil.example")[0] == 400

        code, message = post(f"{server.url}gradio_api/upload", "big.wav", b"x" * 100_001)
        assert code == 413 and "exceeded maximum allowed size of 100000 bytes" in message
        assert list(server.studio.uploads.glob("**/big.wav")) == []
        assert post(f"{server.url}gradio_api/upload", "small.wav", b"x" * 99_999)[0] == 200
        assert len(list(server.studio.uploads.glob("**/small.wav"))) == 1
    assert list(temporary.iterdir()) == []
    assert "GRADIO_TEMP_DIR" not in os.environ
    assert {host for host, *_ in asked} == {"127.0.0.1"}  # nobody else was told
    with pytest.raises(OSError, match="refused"):
        get(server.url)


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("localhost", "localhost"), ("0.0.0.0", "localhost")])
def test_other_hosts(gradio, separator, temporary, host, shown):
    if host == "::1":
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error}")
    with DemoServer(separator, host=host, port=0) as server:
        assert server.url.startswith(f"http://{shown}:")
        assert get(server.url)[0] == 200
        # who lets everyone in has names that this machine does not know of
        assert get(server.url, Host="example.org")[0] == (200 if host == "0.0.0.0" else 400)


def test_a_bug_is_told_in_the_terminal(gradio, separator, temporary, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Studio, "file", fail)
    with DemoServer(separator, port=0) as server:
        code, _, text = get(f"{server.url}songs/token/vocals.wav")
    assert (code, text) == (500, b"Internal Server Error")
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


def test_a_port_that_is_taken(gradio, separator, temporary):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AudioFileError, match=rf"127.0.0.1:{port}: nothing can listen there .*in use"):
            DemoServer(separator, port=port).__enter__()
    assert list(temporary.iterdir()) == []


def test_without_gradio_it_says_what_to_install(separator, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs gradio: pip install 'pyunetsep\[demo\]'"):
        DemoServer(separator)


# the command


@pytest.fixture
def demo(capsys):
    def run(*arguments):
        try:
            code = main(["demo", *arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_help_warns_of_other_hosts(demo):
    code, text, _ = demo("--help")
    assert code == 0 and "everyone who reaches this machine" in text and "without a\npassword" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "65536"], "--port: want a number from 0 to 65535, got '65536'"),
        (["--port", "http"], "--port: want a number"),
        (["--max-mb", "0"], "--max-mb: want a number above 0, got '0'"),
        (["--max-minutes", "nan"], "--max-minutes: want a number above 0"),
        (["--keep", "-1"], "--keep: want a number above 0"),
        (["--host", ""], "--host needs an address"),
    ],
)
def test_usage_errors(demo, arguments, message):
    code, out, err = demo(*arguments)
    assert (code, out) == (2, "") and message in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_its_files(gradio, tmp_path, number):
    model = write_model(tmp_path / "tiny.safetensors")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "pyunetsep", "demo", "--port", "0", "--model", model],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # also when run in the background
    )
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}gradio_api/heartbeat/open-page", timeout=SECONDS):  # as an open page does
            [folder] = temporary.iterdir()
            assert (folder / "uploads").is_dir()
            process.send_signal(number)
            out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")
    assert list(temporary.iterdir()) == []
