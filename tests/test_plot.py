"""Pictures are drawn, of all of the song, and nothing is lost on the way; what they look like is for eyes."""

import re
import struct
import sys

import numpy as np
import pytest
import soundfile
import torch

from pyunetsep import AudioFileError, OutputExistsError
from pyunetsep.cli import main
from pyunetsep.plot import (
    COLUMNS,
    FORMATS,
    HOP,
    N_FFT,
    STRIP_ROWS,
    Spectrogram,
    draw_strip,
    plot_stems,
    read_spectrogram,
)
from tests.tiny import noise, write_model

RATE_HZ = 8_000


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def spectrogram(wave, blocks=1):
    made = Spectrogram(wave.shape[1], RATE_HZ)
    for block in np.array_split(wave, blocks, axis=1):
        made.push(block)
    return made


def frames(wave):
    """All frames' power: [bins, frames]."""
    window = torch.hann_window(N_FFT)
    mono = torch.from_numpy(wave.mean(0))
    return torch.stft(mono, N_FFT, HOP, window=window, pad_mode="constant", return_complex=True).abs().square()


@pytest.mark.parametrize("samples", [0, 1, HOP - 1, HOP, 3_000, 70_001, 300_000])
@pytest.mark.parametrize("blocks", [1, 2, 37])
def test_a_short_songs_columns_are_its_frames(samples, blocks):
    wave = noise(2, samples).numpy()
    made = spectrogram(wave, blocks)
    expected = frames(wave).sqrt() if samples else torch.zeros(N_FFT // 2 + 1, 1)
    assert torch.equal(made.magnitude(), made.magnitude())
    torch.testing.assert_close(made.magnitude(), expected, rtol=1e-4, atol=1e-4)


def test_a_long_songs_columns_are_the_mean_power_of_all_its_frames():
    wave = noise(1, (2 * COLUMNS + 500) * HOP).numpy()
    wave[:, 1_000_000:1_000_200] += 5.0  # between the frames that a picture that skips some would show
    made, expected = spectrogram(wave, 50), frames(wave)
    count = expected.shape[1]
    assert made.columns == COLUMNS < count
    column_of = torch.arange(count) * COLUMNS // count
    for column in (0, 1, 400, COLUMNS - 1):
        mean = expected[:, column_of == column].mean(1)
        torch.testing.assert_close(made.magnitude()[:, column], mean.sqrt(), rtol=1e-3, atol=1e-3)
    loud = made.magnitude()[0]
    assert loud.max() > 5 * loud.median()


@pytest.mark.parametrize("came", [999, 1001])
def test_a_spectrogram_of_fewer_or_more_samples_than_announced_is_an_error(came):
    made = Spectrogram(1000, RATE_HZ)
    made.push(np.zeros((1, came), np.float32))
    with pytest.raises(ValueError, match=f"1000 samples were announced, {came} came"):
        made.magnitude()


def test_nan_and_infinity_are_silence():
    wave = np.full((1, 5_000), 0.25, np.float32)
    wave[0, 100:200], wave[0, 300] = np.nan, np.inf
    silenced = np.where(np.isfinite(wave), wave, 0)
    assert torch.equal(spectrogram(wave).magnitude(), spectrogram(silenced).magnitude())


def test_a_file_is_read_in_blocks_and_its_excerpt_alone(tmp_path):
    wave = noise(2, 200_000).numpy()
    soundfile.write(tmp_path / "song.wav", wave.T, RATE_HZ, subtype="FLOAT")
    blocks = []
    made = read_spectrogram(tmp_path / "song.wav", start_s=2.0, duration_s=20.0, on_block=lambda: blocks.append(1))
    assert len(blocks) == 3
    assert torch.equal(made.magnitude(), spectrogram(wave[:, 16_000:176_000]).magnitude())


@pytest.mark.parametrize(("samples", "channels"), [(1, 0), (3_000, 1), (100_000, 2)])
def test_a_picture_of_any_song(matplotlib, tmp_path, samples, channels):
    mixture = noise(max(1, channels), samples).T.numpy()
    mixture = mixture if channels else mixture[:, 0]
    stems = {"vocals": 0.3 * mixture, "accompaniment": 0.7 * mixture}
    plot_stems(mixture, stems, RATE_HZ, tmp_path / "song.png")
    width, height = png_size(tmp_path / "song.png")
    assert width > 800 and height > 400


def png_size(path):
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return struct.unpack(">II", header[16:])


@pytest.mark.parametrize(
    ("extension", "magic"),
    [("pdf", b"%PDF"), ("svg", b"<?xml"), ("jpg", b"\xff\xd8"), ("WEBP", b"RIFF"), ("tiff", b"II*\0")],
)
def test_the_extension_chooses_the_format(matplotlib, tmp_path, extension, magic):
    assert extension.lower() in FORMATS
    path = tmp_path / f"song.{extension}"
    plot_stems(
        np.ones(100), {"vocals": np.ones(100), "accompaniment": np.zeros(100)}, RATE_HZ, path, title="100 $ song"
    )
    assert path.read_bytes().startswith(magic)


def test_a_strip_shows_a_tone_where_it_belongs(matplotlib, tmp_path):
    from matplotlib.image import imread

    tone_hz = 1_000
    wave = np.sin(2 * np.pi * tone_hz * np.arange(80_000) / RATE_HZ)[None].astype(np.float32)
    made = spectrogram(wave)
    draw_strip(made, made, tmp_path / "strip.png")
    picture = imread(tmp_path / "strip.png")[..., :3].sum(2)
    assert picture.shape == (STRIP_ROWS, made.columns)
    row = picture[:, 10:-10].mean(1).argmax()  # rows are logarithmic from 60 Hz at the bottom to 4 kHz
    expected = STRIP_ROWS * (1 - np.log(tone_hz / 60) / np.log(4_000 / 60))
    assert abs(row - expected) <= 2
    draw_strip(spectrogram(0.001 * wave), made, tmp_path / "quiet.png")
    assert imread(tmp_path / "quiet.png")[..., :3].sum(2).max() < 0.5 * picture.max()  # 60 dB below the mixture


@pytest.mark.parametrize("rate_hz", [1_000, 768_000])
@pytest.mark.parametrize("samples", [0, 1, 10_000])
def test_strips_and_pictures_at_any_rate_and_of_silence(matplotlib, tmp_path, rate_hz, samples):
    made = Spectrogram(samples, rate_hz)
    made.push(np.zeros((1, samples), np.float32))
    draw_strip(made, made, tmp_path / "strip.png")
    assert png_size(tmp_path / "strip.png") == (made.columns, STRIP_ROWS)
    if samples:
        silence = np.zeros(samples)
        plot_stems(silence, {"vocals": silence, "accompaniment": silence}, rate_hz, tmp_path / "song.png")


def test_a_picture_that_cannot_be_finished_leaves_the_one_before(matplotlib, tmp_path, monkeypatch):
    (tmp_path / "song.png").write_text("the one before")

    def fail(self, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(AudioFileError, match=r"song\.png: no space left on device"):
        plot_stems(np.zeros(10), {"vocals": np.zeros(10)}, RATE_HZ, tmp_path / "song.png")
    assert [path.name for path in tmp_path.iterdir()] == ["song.png"]
    assert (tmp_path / "song.png").read_text() == "the one before"


def test_what_cannot_be_written_is_found_out_before_the_work(matplotlib, tmp_path):
    from pyunetsep.plot import check_picture

    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").touch()
    for name in ("song.bmp", "song", "song.png.gz"):
        with pytest.raises(ValueError, match=rf"{name}: pictures can be png, jpg, .*svg"):
            check_picture(tmp_path / name)
    with pytest.raises(AudioFileError, match="there is no folder"):
        check_picture(tmp_path / "missing" / "song.png")
    with pytest.raises(AudioFileError, match="is a folder"):
        check_picture(tmp_path / "folder.png")
    with pytest.raises(OutputExistsError, match="exists already"):
        check_picture(tmp_path / "there.png", overwrite=False)
    check_picture(tmp_path / "there.png")


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pyunetsep\[plot\]'"):
        plot_stems(np.zeros(10), {"vocals": np.zeros(10)}, RATE_HZ, tmp_path / "song.png")


# the command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def plot(matplotlib, tmp_path, monkeypatch, capsys, model):
    """Runs `pyunetsep plot` in a folder with a song of 3 s; temporary files go into a folder beside it."""
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    soundfile.write("song.wav", noise(2, 24_000).T.numpy(), RATE_HZ, subtype="PCM_16")

    def run(*arguments):
        try:
            code = main(["plot", *map(str, arguments), "--model", str(model)])
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        assert output.out == "" and list(temporary.iterdir()) == []
        return code, output.err

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_song_becomes_a_picture_and_a_pipe_stays_silent(plot, tmp_path):
    assert plot("song.wav") == (0, "")
    assert names(tmp_path / "here") == ["song.png", "song.wav"]
    assert png_size(tmp_path / "here" / "song.png")[0] > 800


def test_it_draws_the_song_and_the_stems_that_separate_gives(plot, model, tmp_path, monkeypatch):
    from pyunetsep import Separator

    drawn = {}

    def draw(mixture, stems, path, title):
        drawn.update({"mixture": mixture, **stems, "title": title})

    monkeypatch.setattr("pyunetsep.plot.draw_picture", draw)
    assert plot("song.wav", "--start", "1", "--duration", "1.5") == (0, "")
    assert drawn.pop("title") == "song.wav, 0:01 to 0:02"
    song = soundfile.read("song.wav", dtype="float32")[0][8_000:20_000]
    expected = {"mixture": song, **Separator.from_pretrained(model)(song, RATE_HZ)}
    assert drawn.keys() == expected.keys()
    for name, wave in expected.items():
        torch.testing.assert_close(drawn[name].magnitude(), spectrogram(wave.T).magnitude(), rtol=1e-3, atol=1e-3)


def test_a_picture_that_exists_stays_unless_overwrite_is_asked_for(plot, tmp_path):
    (tmp_path / "here" / "song.png").write_text("precious")
    code, message = plot("song.wav")
    assert (code, message) == (2, "pyunetsep: error: song.png: exists already; see --overwrite\n")
    assert (tmp_path / "here" / "song.png").read_text() == "precious"
    assert plot("song.wav", "--overwrite") == (0, "")
    png_size(tmp_path / "here" / "song.png")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["song.wav", "-o", "song.xyz"], 2, "song.xyz: pictures can be png"),
        (["song.wav", "-o", ""], 2, "got an empty one"),
        (["song.wav", "-o", "missing/song.png"], 1, "missing/song.png: there is no folder missing"),
        (["song.wav", "--start", "3"], 2, "--start: got 3.0, but song.wav ends at 3 s"),
        (["song.wav", "--start", "-1"], 2, "--start: want seconds, m:ss or h:mm:ss, got '-1'"),
        (["song.wav", "--duration", "0"], 2, "--duration must be above 0"),
        (["missing.wav"], 1, "missing.wav: no such file"),
        (["text.mp3"], 1, "text.mp3: not an audio file"),
        (["nan.wav"], 1, "nan.wav: .*--sanitize makes it 0"),
        (["song.wav", "--device", "toaster"], 2, "toaster"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(plot, tmp_path, arguments, code, message):
    (tmp_path / "here" / "text.mp3").write_text("no music " * 50)
    soundfile.write("nan.wav", np.full(100, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
    before = names(tmp_path / "here")
    got, said = plot(*arguments)
    assert got == code
    assert re.search(message, said.splitlines()[-1])
    assert "Traceback" not in said and names(tmp_path / "here") == before


def test_a_song_with_nan_is_drawn_when_sanitized(plot, tmp_path):
    wave = noise(1, 16_000).numpy()[0]
    wave[5_000:5_010] = np.nan
    soundfile.write("nan.wav", wave, RATE_HZ, subtype="FLOAT")
    assert plot("nan.wav", "--sanitize") == (0, "")


def test_a_song_is_not_replaced_by_its_picture(plot, tmp_path):
    (tmp_path / "here" / "song.wav").rename(tmp_path / "here" / "song.png")
    before = (tmp_path / "here" / "song.png").read_bytes()
    code, message = plot("song.png", "--overwrite")
    assert code == 2 and "is the song itself" in message
    assert (tmp_path / "here" / "song.png").read_bytes() == before


def test_an_interrupt_leaves_nothing(plot, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyunetsep.plot.read_spectrogram", interrupted)
    code, message = plot("song.wav")
    assert (code, message) == (130, "pyunetsep: interrupted; nothing half-written is left\n")
    assert names(tmp_path / "here") == ["song.wav"]
