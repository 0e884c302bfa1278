"""The command line as a user meets it: in a process of its own, with a tiny model."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from pyunetsep import _C, config, models
from pyunetsep.cli import main
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, noise, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, noise(2, 20_000).T.numpy(), 8_000, subtype="PCM_16")
    return path


def command(*arguments):
    return [sys.executable, "-m", "pyunetsep", *map(str, arguments)]


@pytest.fixture
def pyunetsep(tmp_path, monkeypatch, capsys):
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capsys.readouterr())

    return run


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def read(path):
    return soundfile.read(path, dtype="float64")[0]


def test_a_song_becomes_stems_and_a_pipe_stays_silent(pyunetsep, model, song, tmp_path):
    done = pyunetsep("separate", song, "--model", model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    outputs = [tmp_path / "stems" / "song" / name for name in ("vocals.wav", "accompaniment.wav")]
    assert sorted((tmp_path / "stems").rglob("*")) == sorted([tmp_path / "stems" / "song", *outputs])
    assert np.abs(sum(map(read, outputs)) - read(song)).max() <= 2 * 2**-15


def test_json_says_what_was_done(pyunetsep, model, song, tmp_path):
    (tmp_path / "text.mp3").write_text("no music " * 50)
    done = pyunetsep("separate", song, "text.mp3", "-m", model, "-o", "out", "--json", "--format", "flac")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    good, bad = report["results"]
    assert report["device"] in ("cpu", "cuda:0")
    assert good["outputs"]["vocals"] == os.path.join("out", "song", "vocals.flac")
    assert good["error"] is None and good["duration_s"] == 2.5
    assert bad["error"]["type"] == "AudioFileError" and "text.mp3" in bad["error"]["message"]
    assert "pyunetsep: error: text.mp3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["separate", "song.wav", "--stem", "drums"], 2, "stem must be of vocals, accompaniment; got ['drums']"),
        (
            ["separate", "song.wav", "song.wav"],
            2,
            "song.wav was given twice",
        ),
        (["separate", "song.wav", "-o", "-"], 2, "-o - needs exactly one SONG and one --stem"),
        (["separate", "-", "-"], 2, "standard input can be given only once"),
        (
            ["separate", "song.wav", "--overwrite", "--skip-existing"],
            2,
            "argument --skip-existing: not allowed with argument --overwrite",
        ),
        (["separate", "none.wav"], 1, "pyunetsep: error: none.wav: no such file or directory\n"),
        (["separate", "song.wav", "--start", "99"], 1, "song.wav: --start: got 99.0, but song.wav ends at 2.5 s"),
        (
            ["separate", "song.wav", "--format", "flac", "--subtype", "FLOAT"],
            1,
            "FLAC has no subtype FLOAT; it has PCM_",
        ),
        (["separate", "song.wav", "--device", "tpu"], 2, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (
            ["separate", "song.wav", "--model", "none"],
            3,
            "'none' is neither the name of a model nor a file or folder; ",
        ),
        (
            ["separate", "song.wav", "--device", "cpu", "--precision", "float16"],
            2,
            "precision must be float32 on a CPU, got 'float16'; float16 and bfloat16 are for a GPU",
        ),
        (["separate", "song.wav", "--precision", "half"], 2, "argument --precision: invalid choice: 'half'"),
        (["separate", "song.wav", "--model", "song.wav"], 3, "song.wav: not a .safetensors model"),
        (["separate", "song.wav", "--start", "-1"], 2, "--start: want seconds, m:ss or h:mm:ss, got '-1'"),
        (["separate", "song.wav", "--start", "nan"], 2, "--start: want seconds, m:ss or h:mm:ss, got 'nan'"),
        (["separate", "song.wav", "--duration", "0:00"], 2, "--duration must be above 0"),
        (["separate", "song.wav", "-o", ""], 2, "-o needs the name of a folder, got an empty one"),
        (["separate"], 2, "the following arguments are required: SONG"),
        (["sing"], 2, "invalid choice: 'sing'"),
        ([], 2, "the following arguments are required: COMMAND"),
        (["models", "show", "none"], 3, "'none' is neither the name of a model nor a file or folder; "),
    ],
)
def test_mistakes_are_one_message_and_an_exit_code(pyunetsep, model, song, tmp_path, arguments, code, message):
    if "separate" in arguments and "--model" not in arguments:
        arguments = [*arguments, "--model", model]
    done = pyunetsep(*arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "stems").exists()


def test_times_may_be_minutes_and_seconds(pyunetsep, model, song):
    done = pyunetsep("separate", song, "-m", model, "--start", "0:01", "--duration", "0:00:01", "--json")
    assert json.loads(done.stdout)["results"][0]["duration_s"] == 1.0


def test_skip_existing_goes_on_where_a_run_stopped(pyunetsep, model, song, tmp_path):
    assert pyunetsep("separate", song, "-m", model, "-s", "vocals").returncode == 0
    again = pyunetsep("separate", song, "-m", model)
    assert again.returncode == 1 and "vocals.wav: exists already; see --overwrite" in again.stderr
    vocals = tmp_path / "stems" / "song" / "vocals.wav"
    stamp = vocals.stat().st_mtime_ns
    done = pyunetsep("separate", song, "-m", model, "--skip-existing", "--json")
    assert json.loads(done.stdout)["results"][0]["skipped"] == ["vocals"]
    assert vocals.stat().st_mtime_ns == stamp and vocals.with_name("accompaniment.wav").exists()


def test_a_pipe_in_and_a_pipe_out(pyunetsep, model, song, tmp_path):
    piped = bytearray(song.read_bytes())
    piped[4:8] = piped[40:44] = b"\xff\xff\xff\xff"  # as ffmpeg writes to a pipe: until the end
    arguments = command("separate", "-", "-m", model, "-s", "vocals", "-o", "-")
    done = subprocess.run(arguments, cwd=tmp_path, input=piped, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "piped.wav").write_bytes(done.stdout)
    pyunetsep("separate", song, "-m", model)
    assert np.array_equal(read(tmp_path / "piped.wav"), read(tmp_path / "stems" / "song" / "vocals.wav"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["piped.wav", "song.wav", "stems"]


def test_nan_is_an_error_and_sanitize_replaces_it(pyunetsep, model, tmp_path):
    wave = noise(1, 20_000)[0].numpy()
    wave[1_234] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, 8_000, subtype="FLOAT")
    done = pyunetsep("separate", "nan.wav", "-m", model)
    assert done.returncode == 1 and "sample 1234" in done.stderr and "--sanitize" in done.stderr
    assert pyunetsep("separate", "nan.wav", "-m", model, "--sanitize").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_half_written(model, tmp_path, number):
    soundfile.write(tmp_path / "long.wav", np.zeros((8_000 * 3_600, 2), np.int16), 8_000)
    process = subprocess.Popen(
        command("separate", "long.wav", "-m", model, "--json"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("stems/long/.*")):  # its temporary files
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    report, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert json.loads(report)["results"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_that_is_full_is_an_error(pyunetsep, model, song, tmp_path):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("separate", song, "-m", model, "-s", "vocals", "-o", "-"),
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        f"pyunetsep: error: {song}: standard output: no space left on device\n",
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes streams")
def test_closed_standard_streams(pyunetsep, model, song, tmp_path):
    def closed(streams, *arguments):
        line = f"{shlex.join(command('separate', song, '-m', model, *arguments))} {streams}"
        return subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    done = closed(">&- 2>&-", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(read(tmp_path / "stems" / "song" / "vocals.wav")) == len(read(tmp_path / "song.wav"))
    done = closed(">&-", "-s", "vocals", "-o", "-")
    assert done.returncode == 2 and done.stderr.endswith("error: standard output is closed\n")


@pytest.fixture
def stdin(monkeypatch):
    """Sets what standard input holds."""

    def hold(content):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return hold


def test_standard_input_has_a_name(pyunetsep, model, song, stdin, tmp_path):
    stdin(song.read_bytes())
    (report,) = json.loads(pyunetsep("separate", "-", "-m", model, "--json").stdout)["results"]
    assert report["input"] == "standard input"
    assert report["outputs"]["vocals"] == os.path.join("stems", "stdin", "vocals.wav")
    assert (tmp_path / "stems" / "stdin" / "vocals.wav").exists()
    stdin(b"no music " * 50)
    done = pyunetsep("separate", "-", "-m", model, "--json")
    assert done.returncode == 1 and done.stderr.startswith("pyunetsep: error: standard input: not an audio file")
    assert json.loads(done.stdout)["results"][0]["error"]["message"].startswith("standard input: not an audio file")
    (tmp_path / "stdin.wav").write_bytes(song.read_bytes())
    done = pyunetsep("separate", "-", "stdin.wav", "-m", model)
    assert done.returncode == 2 and "stdin.wav and standard input would both write to" in done.stderr


def test_a_full_disk_while_standard_input_is_copied(pyunetsep, model, stdin, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    stdin(b"RIFF")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    done = pyunetsep("separate", "-", "-m", model)
    assert done.returncode == 1
    assert done.stderr.startswith("pyunetsep: error: standard input: copying it to ")
    assert done.stderr.endswith(": no space left on device\n")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_interrupts_unless_nohup(pyunetsep, monkeypatch, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        monkeypatch.setattr(models, "names", lambda: signal.raise_signal(signal.SIGHUP) or [])
        assert pyunetsep("models", "list").returncode == (0 if ignored else 130)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def without_extension(*arguments, **options):
    """Runs the command line where `pyunetsep._C` is missing."""
    script = "import sys; sys.modules['pyunetsep._C'] = None; from pyunetsep.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def test_a_missing_extension_is_one_line_and_the_doctor_lives(model, song, tmp_path):
    done = without_extension("separate", song, "-m", model, cwd=tmp_path)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith("pyunetsep: error: pyunetsep's compiled extension is missing: run `pip install .`")
    assert done.stderr.count("\n") == 1
    done = without_extension("doctor", "--json", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (3, "")
    assert facts["kernels"].startswith("broken: pyunetsep's compiled extension is missing")
    assert "libsndfile" in facts["audio"] and "threads" in facts["torch"]
    assert facts["simd"].startswith("broken: ")


COMMANDS = ("separate", "catalogue", "plot", "demo", "train", "evaluate", "models", "export", "doctor", "bench")


@pytest.mark.parametrize("command_name", [(), *((name,) for name in COMMANDS)])
def test_help_teaches_with_examples_and_imports_nothing_heavy(command_name, tmp_path):
    script = (
        "import sys, resource\n"
        "from pyunetsep.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'soundfile'} & set(sys.modules), 'heavy'\n"
    )
    arguments = [sys.executable, "-c", script, *command_name, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "pyunetsep" in done.stdout and "example" in done.stdout


def test_help_answers_in_a_third_of_a_second_of_cpu(tmp_path):
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = []
    for _ in range(3):
        subprocess.run(command("--help"), capture_output=True, cwd=tmp_path, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        before = after
    assert min(times) < 0.3


def test_doctor_says_which_device_and_why(pyunetsep, monkeypatch):
    facts = json.loads(pyunetsep("doctor", "--json").stdout)
    assert {"device", "kernels", "simd", "torch", "models"} <= facts.keys()
    assert facts["device"].startswith(("cpu: ", "cuda"))
    text = pyunetsep("doctor")
    assert text.returncode == 0 and facts["torch"] in text.stdout
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    assert "off (PYUNETSEP_KERNELS=0)" in pyunetsep("doctor").stdout
    monkeypatch.setenv("PYUNETSEP_KERNELS", "x")
    done = pyunetsep("doctor", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["kernels"] == "broken: PYUNETSEP_KERNELS: got 'x', wants 0 or 1"


@pytest.fixture
def tiny_presets(monkeypatch):
    monkeypatch.setattr(config, "PRESETS", {"jansson2017": JANSSON_LIKE, "spleeter": SPLEETER_LIKE})


def test_bench_compares_the_kernels_with_plain_pytorch(pyunetsep, tiny_presets, monkeypatch):
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")  # it measures them all the same
    done = pyunetsep("bench", "--seconds", "0.01", "--threads", "1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["threads"] == [1] and facts["peak_gflops"]["1"] > 0.1
    assert [row["model"] for row in facts["networks"]] == ["jansson2017", "spleeter"]
    for row in [*facts["networks"], facts["song"]]:
        assert row["threads"] == 1
        assert row["ratio"] == row["plain_pytorch"]["median_s"] / row["kernels"]["median_s"]
        assert row["kernels"]["min_s"] <= row["kernels"]["median_s"] <= row["kernels"]["max_s"]
    assert os.environ["PYUNETSEP_KERNELS"] == "0"


def test_bench_prints_a_table(pyunetsep, tiny_presets):
    lines = pyunetsep("bench", "--seconds", "0.01", "--threads", "1").stdout.splitlines()
    assert "multiply-adds alone" in lines[3] and lines[5].split() == ["threads", "kernels", "plain", "PyTorch", "ratio"]
    assert [line.split()[0] for line in lines[6:]] == ["network", "network", "a"]
    assert lines[-1].endswith("x real time")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--threads", "0"), ("--threads", "99999"), ("--threads", "one"), ("--seconds", "0"), ("--seconds", "nan")],
)
def test_bench_says_what_it_wants(pyunetsep, option, value):
    done = pyunetsep("bench", option, value)
    assert done.returncode == 2 and f"argument {option}: got '{value}', wants" in done.stderr


def doctor_with_simd(level, tmp_path):
    command = [sys.executable, "-m", "pyunetsep", "doctor", "--json"]
    environment = {**os.environ, "PYUNETSEP_SIMD": level}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    return done.returncode, json.loads(done.stdout)["simd"]


def test_doctor_says_which_simd_level_runs(tmp_path):
    levels = _C.simd_levels()
    assert levels[0] == "baseline"
    before = _C.simd_level()
    _C.set_simd_level("auto")
    has = _C.has_matrix_products()
    _C.set_simd_level(before)
    code, fact = doctor_with_simd("auto", tmp_path)
    assert code == 0
    assert fact.startswith(f"{levels[-1]}, the widest of {', '.join(levels)}, ")
    assert ("training in float32 and bfloat16 (AMX)" in fact) == has
    code, fact = doctor_with_simd("baseline", tmp_path)
    assert code == 0
    assert fact.startswith("baseline, as PYUNETSEP_SIMD says") and "bfloat16" not in fact


def test_an_unknown_simd_level_is_refused(tmp_path):
    code, fact = doctor_with_simd("mmx", tmp_path)
    assert code == 3
    assert re.match(r"broken: PYUNETSEP_SIMD: got 'mmx', wants auto or, on this processor, one of baseline", fact)
