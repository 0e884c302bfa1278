"""Audio files in and out, and resampling: nothing may be lost in silence."""

import contextlib
import errno
import io
import os
import shutil
import stat
import struct
import sys
import tempfile
import tracemalloc
import unicodedata

import numpy as np
import pytest
import soundfile

from pyunetsep.audio import (
    AudioFormat,
    AudioReader,
    AudioWriter,
    Resampler,
    extension,
    files,
    output_format,
    spooled,
    writing,
)
from pyunetsep.errors import (
    AudioFileError,
    AudioFormatError,
    InvalidAudioError,
    OutputExistsError,
    TruncatedAudioError,
)
from tests.properties import given, settings, st

WAV_16 = AudioFormat("WAV", "PCM_16")
MP3 = AudioFormat("MP3", "MPEG_LAYER_III")
VORBIS = AudioFormat("OGG", "VORBIS")
OPUS = AudioFormat("OGG", "OPUS")
RATE_HZ = 48_000
EXACT = [
    AudioFormat(container, subtype)
    for container, subtypes in {
        "WAV": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE",
        "WAVEX": "PCM_16",
        "RF64": "PCM_24",
        "W64": "PCM_16 FLOAT",
        "AIFF": "PCM_S8 PCM_16 PCM_24 PCM_32 FLOAT",
        "CAF": "PCM_16 FLOAT",
        "FLAC": "PCM_S8 PCM_16 PCM_24",
        "AU": "PCM_16 FLOAT",
        "VOC": "PCM_16",
    }.items()
    for subtype in subtypes.split()
]
LOSSY = [MP3, VORBIS, OPUS]


def noise(channels=2, samples=20_000, seed=0, amplitude=0.2):
    return np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32) * np.float32(amplitude)


def write(path, wave, format=WAV_16, rate_hz=RATE_HZ, block=None, **options):
    options.setdefault("samples", wave.shape[1])
    with AudioWriter(path, sample_rate_hz=rate_hz, channels=wave.shape[0], format=format, **options) as writer:
        for at in range(0, wave.shape[1], block or max(1, wave.shape[1])):
            writer.write(wave[:, at : at + (block or wave.shape[1])])
        writer.commit()
    return writer


def read(path, block=4096, **options):
    with AudioReader(path, **options) as reader:
        waves = list(reader.blocks(block))
        assert reader.read(block).shape == (reader.channels, 0)
        wave = np.concatenate(waves, axis=1) if waves else reader.read(0)
        assert wave.shape == (reader.channels, reader.samples)
        assert wave.dtype == reader.dtype
        return wave


def encoded(format, wave=None, rate_hz=RATE_HZ, **options):
    """A file's bytes as libsndfile alone writes them."""
    memory = io.BytesIO()
    wave = noise() if wave is None else wave
    soundfile.write(memory, wave.T, rate_hz, format=format.container, subtype=format.subtype, **options)
    return memory.getvalue()


def folder_of(path):
    return sorted(os.listdir(path))


# Values and lengths


@pytest.mark.parametrize("format", EXACT, ids=str)
@pytest.mark.parametrize("samples", [1, 4097])
def test_writing_what_was_read_changes_nothing(tmp_path, format, samples):
    (tmp_path / "a").write_bytes(encoded(format, noise(samples=samples, amplitude=0.5)))
    wave = read(tmp_path / "a")
    with AudioReader(tmp_path / "a") as reader:
        assert reader.format == format
        assert (reader.sample_rate_hz, reader.channels, reader.samples) == (RATE_HZ, 2, samples)
    writer = write(tmp_path / "b", wave, format)
    assert writer.clipped_samples == 0 or "FLOAT" in format.subtype
    np.testing.assert_array_equal(read(tmp_path / "b"), wave)


@pytest.mark.parametrize(
    ("subtype", "bits"), [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("PCM_32", 32)], ids=lambda x: str(x)
)
def test_every_integer_survives(tmp_path, subtype, bits):
    half = 1 << (bits - 1)
    integers = np.arange(-half, half) if bits <= 16 else np.random.default_rng(0).integers(-half, half, 50_000)
    integers[:2] = -half, half - 1
    wave = (integers / half)[None]
    write(tmp_path / "a.wav", wave if bits == 32 else wave.astype(np.float32), AudioFormat("WAV", subtype))
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), wave)
    stored = soundfile.read(tmp_path / "a.wav", dtype="int32")[0] >> (32 - bits)
    np.testing.assert_array_equal(stored, integers)


def test_integers_are_rounded_half_to_even_and_clipped(tmp_path):
    steps = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 32767.4, 32768, 32769, 50_000, -32768, -32769, -50_000])
    writer = write(tmp_path / "a.wav", (steps / 32768)[None])
    stored = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    assert stored.tolist() == [0, 2, 2, 0, -2, 32767, 32767, 32767, 32767, -32768, -32768, -32768]
    assert writer.clipped_samples == 4
    assert writer.peak == pytest.approx(50_000 / 32768)


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"])
def test_companded_types_clip_and_never_wrap(tmp_path, subtype):
    writer = write(tmp_path / "a.wav", np.full((1, 2000), 1.5, np.float32), AudioFormat("WAV", subtype))
    assert writer.clipped_samples == 2000
    assert read(tmp_path / "a.wav")[0, 100:1900].min() > 0.9


@pytest.mark.parametrize("format", [AudioFormat("WAV", "FLOAT"), AudioFormat("WAV", "DOUBLE"), *LOSSY], ids=str)
def test_values_beyond_full_scale_stay(tmp_path, format):
    wave = (1.5 * np.sin(np.arange(RATE_HZ) * 0.05)).astype(np.float32)[None]
    writer = write(tmp_path / "a", wave, format)
    assert writer.clipped_samples == 0
    assert writer.peak == pytest.approx(1.5, abs=1e-3)
    assert read(tmp_path / "a").max() == pytest.approx(1.5, abs=0.06)


def test_24_bits_fit_float32_and_more_come_as_float64(tmp_path):
    for subtype, dtype in {
        "PCM_24": np.float32,
        "FLOAT": np.float32,
        "PCM_32": np.float64,
        "DOUBLE": np.float64,
    }.items():
        write(tmp_path / subtype, noise(), AudioFormat("WAV", subtype))
        assert read(tmp_path / subtype).dtype == dtype


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_unless_the_file_holds_floats(tmp_path, value):
    wave = np.array([[0, value]], np.float32)
    for format in (WAV_16, MP3):
        with pytest.raises(InvalidAudioError, match="NaN or infinity"):
            write(tmp_path / "a", wave, format)
    write(tmp_path / "a", wave, AudioFormat("WAV", "FLOAT"))
    np.testing.assert_array_equal(read(tmp_path / "a"), wave)


@pytest.mark.parametrize("format", LOSSY, ids=str)
@pytest.mark.parametrize("samples", [1, 2, 575, 1105, 1153, 4607, 50_001])
def test_lossy_files_keep_the_length(tmp_path, format, samples):
    wave = np.stack([np.sin(np.arange(samples) * step) for step in (0.03, 0.05)]).astype(np.float32) / 2
    write(tmp_path / "a", wave, format)
    there = read(tmp_path / "a")
    assert there.shape == wave.shape
    middle = slice(samples // 8, samples * 7 // 8)
    if samples > 4000:
        assert np.abs(there - wave)[:, middle].max() < 0.02


@pytest.mark.parametrize("format", [WAV_16, MP3, VORBIS, OPUS, AudioFormat("FLAC", "PCM_16")], ids=str)
def test_block_sizes_make_no_difference(tmp_path, format):
    wave = noise(samples=12_345)
    write(tmp_path / "a", wave, format)
    whole = read(tmp_path / "a", block=1 << 20)
    for block in (1, 7, 1000) if format != MP3 else (61, 1000):
        np.testing.assert_array_equal(read(tmp_path / "a", block=block), whole)
    for block in (13, 5000):
        write(tmp_path / "b", wave, format, block=block, overwrite=True)
        np.testing.assert_array_equal(read(tmp_path / "b"), whole)


@pytest.mark.parametrize("format", [AudioFormat("WAV", "GSM610"), AudioFormat("WAV", "IMA_ADPCM")], ids=str)
def test_block_codecs_may_fill_up_their_last_block(tmp_path, format):
    write(tmp_path / "a.wav", noise(channels=1, samples=1001), format, rate_hz=8000)
    assert 1001 <= read(tmp_path / "a.wav").shape[1] < 2000


def test_formats_that_cannot_hold_nothing_say_so(tmp_path):
    nothing = np.empty((2, 0), np.float32)
    write(tmp_path / "a.wav", nothing)
    assert read(tmp_path / "a.wav").shape == (2, 0)
    for format in (MP3, OPUS, AudioFormat("FLAC", "PCM_16")):
        with pytest.raises(AudioFormatError, match="0 samples"):
            write(tmp_path / "b", nothing, format)
    assert folder_of(tmp_path) == ["a.wav"]


# Excerpts


@pytest.mark.parametrize(
    "format",
    [*LOSSY, WAV_16, AudioFormat("FLAC", "PCM_24"), AudioFormat("CAF", "ALAC_16"), AudioFormat("WAV", "IMA_ADPCM")],
    ids=str,
)
def test_an_excerpt_is_a_slice_of_the_whole(tmp_path, format):
    (tmp_path / "a").write_bytes(encoded(format, noise(samples=100_000)))
    whole = read(tmp_path / "a")
    total = whole.shape[1]
    for start, samples in [(0, 10), (1, 5000), (1105, 1152), (50_000, 30_000), (total - 1200, 1000), (total - 1, 1)]:
        excerpt = read(tmp_path / "a", start_s=start / RATE_HZ, duration_s=samples / RATE_HZ)
        np.testing.assert_array_equal(excerpt, whole[:, start : start + samples])
    for duration_s in (None, 1e9, float("inf")):
        np.testing.assert_array_equal(read(tmp_path / "a", start_s=1.5, duration_s=duration_s), whole[:, 72_000:])


def test_codecs_that_cannot_seek_are_decoded_up_to_the_excerpt(tmp_path):
    (tmp_path / "a").write_bytes(encoded(AudioFormat("AU", "G721_32"), noise(channels=1)))
    np.testing.assert_array_equal(read(tmp_path / "a", start_s=0.1), read(tmp_path / "a")[:, 4800:])


@pytest.mark.parametrize(
    ("times", "name"),
    [
        ({"start_s": -1}, "start_s"),
        ({"start_s": float("nan")}, "start_s"),
        ({"start_s": float("inf")}, "start_s"),
        ({"start_s": 20_000 / RATE_HZ}, "start_s"),
        ({"duration_s": 0}, "duration_s"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"duration_s": float("nan")}, "duration_s"),
    ],
    ids=str,
)
def test_times_that_make_no_sense(tmp_path, times, name):
    write(tmp_path / "a.wav", noise())
    with pytest.raises(ValueError, match=name):
        AudioReader(tmp_path / "a.wav", **times)


# Truncation


@pytest.mark.parametrize(
    "format",
    [
        *(AudioFormat(name, "PCM_16") for name in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC")),
        AudioFormat("WAV", "IMA_ADPCM"),
        AudioFormat("CAF", "ALAC_16"),
        *LOSSY,
    ],
    ids=str,
)
@pytest.mark.parametrize("cut", ["1 byte", "100 bytes", "third"])
def test_a_file_that_was_cut_off_is_an_error(tmp_path, format, cut):
    data = encoded(format)
    lost = {"1 byte": 1, "100 bytes": 100, "third": len(data) // 3}[cut]
    (tmp_path / "a").write_bytes(data)
    assert read(tmp_path / "a").shape[1] >= 20_000
    (tmp_path / "a").write_bytes(data[:-lost])
    with pytest.raises(TruncatedAudioError) as caught:
        read(tmp_path / "a")
    assert str(caught.value).startswith(str(tmp_path / "a"))


def test_truncation_says_how_many_samples_are_missing(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(WAV_16)[:-10_000])
    with pytest.raises(TruncatedAudioError, match="promises 20000 samples, 17500 are there"):
        AudioReader(tmp_path / "a.wav")


def test_a_wav_of_odd_length_needs_no_padding_byte(tmp_path):
    data = encoded(AudioFormat("WAV", "PCM_U8"), noise(channels=1, samples=1001))
    for file in (data, data.removesuffix(b"\0"), data + b"\0", data + b"trailing junk"):
        (tmp_path / "a.wav").write_bytes(file)
        assert read(tmp_path / "a.wav").shape == (1, 1001)


def patched_wav(data_size, riff_size, wave=None):
    data = bytearray(encoded(WAV_16, wave))
    struct.pack_into("<I", data, data.index(b"data") + 4, data_size)
    struct.pack_into("<I", data, 4, riff_size)
    return bytes(data)


@pytest.mark.parametrize(
    ("data_size", "riff_size"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg -f wav -
        (0x7FFFF000, 0x7FFFF024),  # sox -t wav -
        (0x7FFFFFFF, 0x7FFFFFFF),
        (0x80000000, 0x80000024),  # arecord
        (0, 0),
        (0, 36),  # a recorder that crashed
        (0, 0xFFFFFFFF),
    ],
)
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path, data_size, riff_size):
    (tmp_path / "a.wav").write_bytes(patched_wav(data_size, riff_size))
    (tmp_path / "b.wav").write_bytes(encoded(WAV_16))
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), read(tmp_path / "b.wav"))


def test_an_empty_wav_with_more_chunks_is_empty(tmp_path):
    data = encoded(WAV_16, noise(samples=0)) + b"LIST\4\0\0\0INFO"
    (tmp_path / "a.wav").write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert read(tmp_path / "a.wav").shape == (2, 0)


@pytest.mark.parametrize("container", ["CAF", "AU", "RF64", "AIFF"])
def test_other_containers_from_a_pipe_are_read_to_their_end(tmp_path, container):
    data = bytearray(encoded(AudioFormat(container, "PCM_16")))
    if container == "CAF":
        struct.pack_into(">q", data, data.index(b"data") + 4, -1)
    elif container == "AU":
        struct.pack_into(">I", data, 8, 0xFFFFFFFF)
    elif container == "RF64":
        struct.pack_into("<QQ", data, data.index(b"ds64") + 8, 0, 0)
    else:
        struct.pack_into(">I", data, data.index(b"SSND") + 4, 0xFFFFFFFF)
    (tmp_path / "a").write_bytes(data)
    assert read(tmp_path / "a").shape == (2, 20_000)


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files")
def test_a_piped_wav_of_more_than_4_gib_is_read_to_its_end(tmp_path):
    samples = (1 << 30) + 12_345  # of 4 bytes
    with open(tmp_path / "a.wav", "wb") as file:
        file.write(patched_wav(0xFFFFFFFF, 0xFFFFFFFF, noise(samples=0)))
        file.seek(samples * 4 - 4, os.SEEK_CUR)
        file.write(struct.pack("<hh", 1, 2))
    with AudioReader(tmp_path / "a.wav", start_s=(samples - 2) / RATE_HZ) as reader:
        assert reader.samples == 2
        assert (reader.read(5) * 32768).tolist() == [[0, 1], [0, 2]]


def test_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    data = bytearray(encoded(AudioFormat("FLAC", "PCM_16")))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert read(tmp_path / "a.flac").shape == (2, 20_000)
    np.testing.assert_array_equal(read(tmp_path / "a.flac", start_s=0.1), read(tmp_path / "a.flac")[:, 4800:])


def test_a_damaged_file_is_an_error(tmp_path):
    data = bytearray(encoded(AudioFormat("FLAC", "PCM_16"), noise(samples=200_000)))
    data[300_000:300_100] = bytes(100)
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(AudioFileError, match="damaged"):
        read(tmp_path / "a.flac")


def mp3_frame_bytes(data):
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[data[2] >> 4]
    return 144_000 * kbits // (44100, 48000, 32000)[data[2] >> 2 & 3] + (data[2] >> 1 & 1)


@pytest.mark.parametrize("bitrate_mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate_hz", [48_000, 44_100])
def test_an_mp3_without_xing_header_is_read_to_its_end(tmp_path, bitrate_mode, rate_hz):
    fading_in = noise(samples=200_000) * np.linspace(0, 1, 200_000, dtype=np.float32)
    data = encoded(MP3, fading_in, rate_hz, compression_level=0.0, bitrate_mode=bitrate_mode)
    (tmp_path / "a.mp3").write_bytes(data)
    whole = read(tmp_path / "a.mp3")
    (tmp_path / "b.mp3").write_bytes(data[mp3_frame_bytes(data) :])
    bare = read(tmp_path / "b.mp3")
    lag = bare.shape[1] - 200_000
    assert 0 < lag <= 3 * 1152  # encoder delay and padding, which only the Xing header can name
    offset = next(
        n for n in range(lag + 1) if np.abs(bare[:, n + 9000 : n + 19000] - whole[:, 9000:19000]).max() < 1e-3
    )
    assert np.abs(bare[:, offset + 9000 : offset + 200_000 - 1152] - whole[:, 9000:-1152]).max() < 1e-3
    np.testing.assert_array_equal(read(tmp_path / "b.mp3", start_s=1), bare[:, rate_hz:])


def test_an_mp3_that_counts_a_frame_too_many_ends_in_silence(tmp_path):
    data = bytearray(encoded(MP3))
    at = data.index(b"Xing") + 8
    struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + 1)
    (tmp_path / "a.mp3").write_bytes(data)
    wave = read(tmp_path / "a.mp3")
    assert wave.shape == (2, 20_000 + 1152)
    assert not wave[:, -100:].any()


@pytest.mark.parametrize("xing", ["0", "1"])
def test_an_mp3_by_ffmpeg_is_whole(tmp_path, xing):
    write_m4a(tmp_path / "a.mp3", noise(samples=100_000), 44_100, "mp3", "libmp3lame", write_xing=xing, write_id3v1="1")
    assert 100_000 <= read(tmp_path / "a.mp3").shape[1] <= 100_000 + (0 if xing == "1" else 3 * 1152)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[: len(data) // 2])
    if xing == "1":
        with pytest.raises(TruncatedAudioError):
            read(tmp_path / "a.mp3")


ID3V1 = b"TAG" + bytes(125)
APE = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0x80000000)
ID3V2 = b"ID3\4\0\0\0\0\x08\0" + bytes(1024)


@pytest.mark.parametrize("xing", [True, False])
@pytest.mark.parametrize(("head", "tail"), [(b"", ID3V1), (b"", APE + ID3V1), (ID3V2, b""), (ID3V2 + ID3V2, ID3V1)])
def test_tags_of_an_mp3_are_not_sound(tmp_path, xing, head, tail):
    data = encoded(MP3)
    data = data if xing else data[mp3_frame_bytes(data) :]
    (tmp_path / "a.mp3").write_bytes(data)
    (tmp_path / "b.mp3").write_bytes(head + data + tail)
    np.testing.assert_array_equal(read(tmp_path / "a.mp3"), read(tmp_path / "b.mp3"))


@pytest.mark.parametrize("format", [VORBIS, OPUS], ids=str)
def test_an_ogg_file_without_end_flag_or_with_junk_is_whole(tmp_path, format):
    data = encoded(format, noise(samples=100_000))
    last = data.rindex(b"OggS")
    for whole in (data[:last], data + b"junk" * 100, data + ID3V1):
        (tmp_path / "a.ogg").write_bytes(whole)
        assert read(tmp_path / "a.ogg").shape[1] > 50_000


# What is not audio


def test_a_missing_file(tmp_path):
    with pytest.raises(AudioFileError, match=r"song\.mp3: no such file") as caught:
        AudioReader(tmp_path / "song.mp3")
    assert caught.value.errno == errno.ENOENT
    assert str(caught.value).startswith(str(tmp_path))


def test_a_folder(tmp_path):
    with pytest.raises(AudioFileError, match=r"is a directory|permission denied"):
        AudioReader(tmp_path)
    with pytest.raises(AudioFileError, match="is a folder"):
        write(tmp_path, noise(), overwrite=True)


def test_a_file_that_must_not_be_read(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(AudioFileError, match=r"a\.wav: permission denied") as caught:
        AudioReader(tmp_path / "a.wav")
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello world\n" * 100, "not an audio file"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n" * 50, "not an audio file"),
        (bytes(10_000), "not an audio file"),
        (b"\xff" * 10_000, "not an audio file"),
        (b"RIFF", "not an audio file"),
        (b"RIFF\0\0\0\0WAVE", "not an audio file"),
        (b"ID3\4\0\0\0\0\x08\0", "not an audio file"),
        (b"OggS\0", "cut off"),
        (b"caff\0\1\0\0data" + b"\xff" * 8, "not an audio file"),
    ],
    ids=lambda value: repr(value[:8]),
)
def test_files_that_are_no_audio(tmp_path, content, reason):
    (tmp_path / "song.mp3").write_bytes(content)
    with pytest.raises(AudioFileError, match=rf"song\.mp3: {reason}"):
        AudioReader(tmp_path / "song.mp3")


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "song.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(100))
    with pytest.raises(AudioFileError, match=r"pyunetsep\[av\]"):
        AudioReader(tmp_path / "song.m4a")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=150)
@given(data=st.data())
def test_damage_never_raises_anything_but_an_audio_file_error(folder, data):
    format = data.draw(st.sampled_from([WAV_16, AudioFormat("AIFF", "PCM_16"), AudioFormat("CAF", "PCM_16"), MP3]))
    content = bytearray(encoded(format, noise(samples=200)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(150, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path = folder / "a"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        with AudioReader(path) as reader:
            for _ in zip(range(100), reader.blocks(4096), strict=False):
                pass
    except AudioFileError:
        pass


# Files that only PyAV reads


def write_m4a(path, wave, rate_hz=44_100, format="mp4", codec="aac", **options):
    av = pytest.importorskip("av")
    layout = "stereo" if wave.shape[0] == 2 else "mono"
    with av.open(str(path), "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        for at in range(0, wave.shape[1], 1024):
            block = np.ascontiguousarray(wave[:, at : at + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate_hz, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("channels", [1, 2])
def test_m4a(tmp_path, channels):
    tone = np.sin(np.arange(44_100) * 2 * np.pi * 440 / 44_100)
    wave = np.stack([tone, tone / 2])[:channels].astype(np.float32) / 2
    write_m4a(tmp_path / "a.m4a", wave)
    with AudioReader(tmp_path / "a.m4a") as reader:
        assert reader.format == AudioFormat("M4A", "AAC")
        assert (reader.sample_rate_hz, reader.channels) == (44_100, channels)
        assert 44_100 <= reader.samples < 44_100 + 2 * 1024
    whole = read(tmp_path / "a.m4a")
    assert whole.dtype == np.float32
    assert np.abs(whole[:, 4000:40_000] - wave[:, 4000:40_000]).max() < 0.05
    np.testing.assert_array_equal(whole, read(tmp_path / "a.m4a", block=777))
    np.testing.assert_array_equal(
        whole[:, 22_050:32_050], read(tmp_path / "a.m4a", start_s=0.5, duration_s=10_000 / 44_100)
    )


def test_a_truncated_m4a_is_an_error(tmp_path):
    write_m4a(tmp_path / "a.m4a", noise(samples=50_000), movflags="faststart")
    data = (tmp_path / "a.m4a").read_bytes()
    assert read(tmp_path / "a.m4a").shape[1] >= 50_000
    for lost in (1000, len(data) // 2):
        (tmp_path / "a.m4a").write_bytes(data[:-lost])
        with pytest.raises(AudioFileError, match=r"a\.m4a: (cut off|damaged)"):
            AudioReader(tmp_path / "a.m4a")


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_an_m4a_without_its_end_is_called_cut_off(tmp_path, kept):
    write_m4a(tmp_path / "a.m4a", noise(samples=50_000))  # its index comes last
    data = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(TruncatedAudioError, match=r"a\.m4a: cut off, or never completed: its index is damaged"):
        AudioReader(tmp_path / "a.m4a")


@pytest.mark.parametrize(("container", "codec"), [("matroska", "aac"), ("webm", "libopus"), ("matroska", "libmp3lame")])
def test_a_truncated_matroska_file_is_an_error(tmp_path, container, codec):
    write_m4a(tmp_path / "a.mkv", noise(samples=150_000), 48_000, container, codec)
    assert read(tmp_path / "a.mkv").shape[1] >= 149_000
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedAudioError, match=r"a\.mkv: cut off: its header promises 3\.\d+ seconds, 1\.\d+ are"):
        AudioReader(tmp_path / "a.mkv")


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("codec", ["libmp3lame", "libopus"])
def test_a_matroska_stream_without_length_is_read_to_its_end(tmp_path, codec, cut):
    write_m4a(tmp_path / "a.mkv", noise(samples=150_000), 48_000, "matroska", codec, live="1")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2] if cut else data)
    assert read(tmp_path / "a.mkv").shape[1] > 70_000


@pytest.mark.parametrize("container", ["mov", "avi"])
def test_films_whose_header_counts_samples_are_whole(tmp_path, container):
    write_m4a(tmp_path / "a", noise(samples=50_000), 44_100, container, "pcm_s16le")
    assert read(tmp_path / "a").shape == (2, 50_000)


def test_an_m4a_is_written_as_a_float_wav():
    m4a = AudioFormat("M4A", "AAC")
    assert output_format(None, None, m4a, 44_100, 2) == AudioFormat("WAV", "FLOAT")
    assert output_format("mp3", None, m4a, 44_100, 2) == MP3


# Writing


def test_no_file_has_its_name_before_it_is_complete(tmp_path):
    wave = noise()
    with AudioWriter(tmp_path / "a.wav", sample_rate_hz=8000, channels=2, samples=20_000, format=WAV_16) as writer:
        writer.write(wave)
        (temporary,) = folder_of(tmp_path)
        assert temporary.startswith(".a.wav.")
        assert temporary.endswith(".part")
        writer.finish()
        assert folder_of(tmp_path) == [temporary]
        writer.commit()
        assert folder_of(tmp_path) == ["a.wav"]
        with pytest.raises(ValueError, match="closed"):
            writer.write(wave)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_without_commit_nothing_stays(tmp_path, error):
    with (
        pytest.raises(error) if error else contextlib.nullcontext(),
        AudioWriter(tmp_path / "a.wav", sample_rate_hz=8000, channels=2, samples=20_000, format=WAV_16) as writer,
    ):
        writer.write(noise())
        if error:
            raise error
    assert folder_of(tmp_path) == []


def test_an_existing_file_stays_unless_overwrite(tmp_path):
    (tmp_path / "a.wav").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"a\.wav: exists already"):
        write(tmp_path / "a.wav", noise())
    assert (tmp_path / "a.wav").read_text() == "mine"
    write(tmp_path / "a.wav", noise(), overwrite=True)
    assert read(tmp_path / "a.wav").shape == (2, 20_000)
    assert folder_of(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_stays(tmp_path, links, monkeypatch):
    if not links:

        def no_links(*_):
            raise OSError(errno.EOPNOTSUPP, "no links here")

        monkeypatch.setattr(os, "link", no_links)
        write(tmp_path / "b.wav", noise())
    with AudioWriter(tmp_path / "a.wav", sample_rate_hz=8000, channels=2, samples=20_000, format=WAV_16) as writer:
        writer.write(noise())
        (tmp_path / "a.wav").write_text("mine")
        with pytest.raises(OutputExistsError):
            writer.commit()
    assert (tmp_path / "a.wav").read_text() == "mine"
    assert not [name for name in folder_of(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize("fails", ["commit", "exception"])
def test_an_input_that_is_its_own_output_is_safe(tmp_path, fails):
    write(tmp_path / "a.wav", noise())
    before = (tmp_path / "a.wav").read_bytes()
    with (
        AudioReader(tmp_path / "a.wav") as reader,
        AudioWriter(
            tmp_path / "a.wav", sample_rate_hz=48_000, channels=2, samples=20_000, format=WAV_16, overwrite=True
        ) as writer,
    ):
        for wave in reader.blocks(1000):
            writer.write(wave)
            assert (tmp_path / "a.wav").read_bytes() == before
        if fails == "commit":
            writer.commit()
    assert (tmp_path / "a.wav").read_bytes() == before


def test_the_number_of_samples_must_be_as_announced(tmp_path):
    with pytest.raises(ValueError, match="5 samples were announced, 20000 were written"):
        write(tmp_path / "a.wav", noise(), samples=5)
    assert folder_of(tmp_path) == []


def test_folders_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "a.wav", tmp_path / "file" / "a.wav", tmp_path / ("x" * 300)):
        with pytest.raises(AudioFileError) as caught:
            write(path, noise())
        assert str(caught.value).startswith(str(path))
        assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(AudioFileError, match="permission denied"):
        write(tmp_path / "a.wav", noise())


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices here")
def test_a_device_is_never_replaced():
    with pytest.raises(AudioFileError, match="not a regular file"):
        write("/dev/null", noise(), overwrite=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


FORMATS_ON_DISK = [WAV_16, AudioFormat("FLAC", "PCM_16"), AudioFormat("AIFF", "PCM_16")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("format", [*FORMATS_ON_DISK, *LOSSY], ids=str)
@pytest.mark.parametrize("samples", [10, 50_000])
def test_a_full_disk(tmp_path, monkeypatch, capfd, format, samples):
    temporary = tmp_path / ".a.part"

    def on_full_disk(path):
        temporary.touch()
        return str(temporary), open("/dev/full", "w+b")

    monkeypatch.setattr(writing, "_create_beside", on_full_disk)
    with pytest.raises(AudioFileError, match="/a: no space left on device") as caught:
        write(tmp_path / "a", noise(samples=samples), format, block=1000)
    assert caught.value.errno == errno.ENOSPC
    assert folder_of(tmp_path) == []
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits here")
@pytest.mark.parametrize("format", [*FORMATS_ON_DISK, *LOSSY], ids=str)
def test_a_disk_that_becomes_full(tmp_path, format):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(AudioFileError, match="/a: file too large") as caught:
            write(tmp_path / "a", noise(samples=100_000), format, block=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert folder_of(tmp_path) == []


@contextlib.contextmanager
def interrupted_before_the_first_line_of(function):
    """As by a signal that comes while libsndfile runs: Python raises when the next callback begins."""

    def tracer(frame, event, _):
        if event == "call" and frame.f_code is function.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt

    tracing = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
        assert sys.gettrace() is None, f"{function.__qualname__} was not called"
    finally:
        sys.settrace(tracing)


@pytest.mark.parametrize("callback", ["write", "seek", "tell"])
def test_an_interrupt_while_libsndfile_writes_is_an_interrupt(tmp_path, capfd, callback):
    with (
        pytest.raises(KeyboardInterrupt),
        interrupted_before_the_first_line_of(getattr(files.GuardedFile, callback)),
    ):
        write(tmp_path / "a.flac", noise(), AudioFormat("FLAC", "PCM_16"))
    assert folder_of(tmp_path) == []
    assert capfd.readouterr().err == ""  # where cffi would tell of an exception that it drops


@pytest.mark.parametrize("callback", ["get_filelen", "read", "seek", "tell"])
def test_an_interrupt_while_libsndfile_reads_is_an_interrupt(tmp_path, capfd, callback):
    write(tmp_path / "a.wav", noise())
    with (
        pytest.raises(KeyboardInterrupt),
        interrupted_before_the_first_line_of(getattr(files.GuardedFile, callback)),
    ):
        read(tmp_path / "a.wav")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("format", [WAV_16, AudioFormat("WAV", "FLOAT"), AudioFormat("WAVEX", "PCM_24")], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_wav_over_the_limit_becomes_rf64(tmp_path, monkeypatch, format, channels):
    wave = noise(channels)
    write(tmp_path / "small.wav", wave, format)
    assert (tmp_path / "small.wav").read_bytes()[:4] == b"RIFF"
    monkeypatch.setattr(writing, "MAX_RIFF_BYTES", 10_000)
    write(tmp_path / "large.wav", wave, format)
    assert (tmp_path / "large.wav").read_bytes()[:4] == b"RF64"
    np.testing.assert_array_equal(read(tmp_path / "small.wav"), read(tmp_path / "large.wav"))


def test_aiff_over_the_limit_is_refused(tmp_path):
    with pytest.raises(AudioFormatError, match="4 GiB"):
        AudioWriter(
            tmp_path / "a.aiff", sample_rate_hz=8000, channels=2, samples=1 << 31, format=AudioFormat("AIFF", "PCM_16")
        )
    assert folder_of(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no umask here")
def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "a.wav", noise())
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "a.wav").st_mode) == 0o640


NAMES = [
    "sön.wav",
    unicodedata.normalize("NFD", "sön.wav"),
    "歌 🎤.wav",
    "x" * 251 + ".wav",
    "🎤" * 60 + ".wav",
    "a'b\"c\n.wav",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(tmp_path, name):
    if sys.platform == "win32" and '"' in name:
        pytest.skip("no such names here")
    write(tmp_path / name, noise())
    assert read(tmp_path / name).shape == (2, 20_000)
    assert len(folder_of(tmp_path)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names are not bytes here")
def test_names_that_are_not_unicode(tmp_path):
    path = os.path.join(str(tmp_path), os.fsdecode(b"\xff\xfe.flac"))
    write(path, noise(), AudioFormat("FLAC", "PCM_16"))
    assert read(path).shape == (2, 20_000)


@pytest.mark.parametrize(
    "wave",
    [np.zeros(5, np.float32), np.zeros((3, 5), np.float32), np.zeros((2, 5), np.int16)],
    ids=lambda w: str(w.shape),
)
def test_only_waves_can_be_written(tmp_path, wave):
    with (
        AudioWriter(tmp_path / "a.wav", sample_rate_hz=8000, channels=2, samples=20_000, format=WAV_16) as writer,
        pytest.raises(InvalidAudioError, match="want float32 or float64"),
    ):
        writer.write(wave)


# Formats


@pytest.mark.parametrize(
    ("container", "subtype", "like", "expected"),
    [
        (None, None, WAV_16, WAV_16),
        (None, None, AudioFormat("FLAC", "PCM_24"), AudioFormat("FLAC", "PCM_24")),
        (None, None, OPUS, OPUS),
        (None, None, AudioFormat("RF64", "FLOAT"), AudioFormat("WAV", "FLOAT")),
        (None, "pcm_24", WAV_16, AudioFormat("WAV", "PCM_24")),
        ("flac", None, AudioFormat("WAV", "FLOAT"), AudioFormat("FLAC", "PCM_24")),
        ("flac", None, AudioFormat("WAV", "PCM_U8"), AudioFormat("FLAC", "PCM_S8")),
        ("wav", None, AudioFormat("FLAC", "PCM_24"), AudioFormat("WAV", "PCM_24")),
        (None, None, AudioFormat("CAF", "ALAC_24"), AudioFormat("CAF", "PCM_24")),
        ("wav", None, AudioFormat("CAF", "ALAC_16"), WAV_16),
        ("wav", None, AudioFormat("CAF", "ALAC_20"), AudioFormat("WAV", "PCM_24")),
        ("wav", None, MP3, AudioFormat("WAV", "FLOAT")),
        ("wav", None, AudioFormat("AIFF", "PCM_S8"), AudioFormat("WAV", "PCM_16")),
        (".MP3", None, WAV_16, MP3),
        ("ogg", None, WAV_16, VORBIS),
        ("opus", None, WAV_16, OPUS),
        ("aif", None, WAV_16, AudioFormat("AIFF", "PCM_16")),
        (None, None, AudioFormat("WEBM", "OPUS"), AudioFormat("WAV", "FLOAT")),
        (None, None, AudioFormat("WAV", "MPEG_LAYER_III"), AudioFormat("WAV", "FLOAT")),
    ],
    ids=str,
)
def test_output_format(container, subtype, like, expected):
    assert output_format(container, subtype, like, RATE_HZ, 2) == expected


@pytest.mark.parametrize(
    ("container", "subtype", "rate_hz", "channels", "hint"),
    [
        ("opus", None, 44_100, 2, "8000, 12000, 16000, 24000, 48000 Hz"),
        ("mp3", None, 96_000, 2, "44100, 48000 Hz"),
        ("mp3", None, 44_100, 3, "up to 2 channels"),
        ("flac", None, 44_100, 9, "up to 8 channels"),
        ("flac", None, 700_000, 2, "384000 Hz"),
        ("wav", "VORBIS", 44_100, 2, "PCM_16, PCM_24"),
        ("flac", "FLOAT", 44_100, 2, "PCM_16, PCM_24"),
        ("m4a", None, 44_100, 2, "libsndfile writes .*flac"),
        ("sd2", None, 44_100, 2, "libsndfile writes"),
    ],
)
def test_output_formats_that_do_not_fit_say_what_does(tmp_path, container, subtype, rate_hz, channels, hint):
    with pytest.raises(AudioFormatError, match=hint):
        output_format(container, subtype, WAV_16, rate_hz, channels)


def test_flac_takes_the_rates_it_can():
    assert output_format("flac", None, WAV_16, 384_000, 8).container == "FLAC"


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (WAV_16, ".wav"),
        (AudioFormat("RF64", "FLOAT"), ".wav"),
        (AudioFormat("WAVEX", "PCM_24"), ".wav"),
        (MP3, ".mp3"),
        (VORBIS, ".ogg"),
        (OPUS, ".opus"),
        (AudioFormat("AIFF", "PCM_16"), ".aiff"),
        (AudioFormat("W64", "PCM_16"), ".w64"),
    ],
    ids=str,
)
def test_extension(format, expected):
    assert extension(format) == expected


def test_a_format_that_does_not_fit_leaves_no_file(tmp_path):
    with pytest.raises(AudioFormatError):
        write(tmp_path / "a.opus", noise(), OPUS, rate_hz=44_100)
    assert folder_of(tmp_path) == []


# Streams


def test_a_pipe_is_spooled():
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb") as end:
        if os.path.exists("/dev/fd"):
            with pytest.raises(AudioFileError, match="spooled"):
                AudioReader(f"/dev/fd/{reader}")
        end.write(patched_wav(0xFFFFFFFF, 0xFFFFFFFF, noise(samples=4000)))
        end.close()
        with spooled(pipe) as path:
            assert read(path).shape == (2, 4000)
            assert os.path.basename(path) == "stdin"
        assert not os.path.exists(os.path.dirname(path))


def test_a_full_disk_while_a_pipe_is_spooled(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with (
        pytest.raises(AudioFileError, match=r"^standard input: copying it to .*: no space left") as caught,
        spooled(io.BytesIO(b"music")),
    ):
        pass
    assert caught.value.errno == errno.ENOSPC and folder_of(tmp_path) == []


def test_memory_stays_flat(tmp_path):
    format = AudioFormat("WAV", "FLOAT")
    tracemalloc.start()
    with AudioWriter(
        tmp_path / "a.wav", sample_rate_hz=RATE_HZ, channels=2, samples=2_000_000, format=format
    ) as writer:
        resampler = Resampler(44_100, RATE_HZ, 2)
        for _ in range(125):
            writer.write(np.zeros((2, 16_000), np.float32))
            resampler.push(np.zeros((2, 16_000), np.float32))
        writer.commit()
    for _ in AudioReader(tmp_path / "a.wav").blocks(16_000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # the file has 16e6 bytes


# Resampling


def resample(wave, from_hz, to_hz):
    resampler = Resampler(from_hz, to_hz, wave.shape[0], wave.dtype)
    return np.concatenate([resampler.push(wave), resampler.flush()], axis=1)


RATES_HZ = [8000, 8192, 11025, 16000, 22050, 44100, 48000, 96000, 192000]


@settings(max_examples=100)
@given(st.integers(0, 5000), st.sampled_from(RATES_HZ), st.sampled_from(RATES_HZ))
def test_resampled_length(samples, from_hz, to_hz):
    wave = resample(noise(1, samples), from_hz, to_hz)
    assert wave.shape == (1, -(-samples * to_hz // from_hz))
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
    assert resample(wave, to_hz, from_hz).shape[1] >= samples


@pytest.mark.parametrize(
    "rates", [(192_000, 8192), (8000, 44_100), (44_100, 44_101), (44_100, 48_000), (48_000, 44_100)]
)
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 4409, 4410, 4411])
def test_resampled_length_of_extreme_rates(rates, samples):
    for dtype in (np.float32, np.float64):
        wave = resample(noise(3, samples).astype(dtype), *rates)
        assert wave.shape == (3, -(-samples * rates[1] // rates[0]))
        assert wave.dtype == dtype


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 3000), max_size=12),
    st.sampled_from(RATES_HZ),
    st.sampled_from(RATES_HZ),
    st.sampled_from([np.float32, np.float64]),
)
def test_blocks_resample_to_the_same_bits(sizes, from_hz, to_hz, dtype):
    wave = noise(2, sum(sizes)).astype(dtype)
    resampler = Resampler(from_hz, to_hz, 2, dtype)
    for _ in range(2):  # flush leaves it as new
        blocks = [resampler.push(block) for block in np.split(wave, np.cumsum(sizes), axis=1)]
        blocks.append(resampler.flush())
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), resample(wave, from_hz, to_hz))


def test_large_blocks_resample_to_the_same_bits():
    wave = noise(2, 700_000)
    whole = resample(wave, 44_100, 48_000)
    resampler = Resampler(44_100, 48_000, 2)
    blocks = [resampler.push(wave[:, at : at + 4096]) for at in range(0, wave.shape[1], 4096)]
    np.testing.assert_array_equal(np.concatenate([*blocks, resampler.flush()], axis=1), whole)


@pytest.mark.parametrize(
    "rates", [(44_100, 48_000), (48_000, 44_100), (96_000, 44_100), (44_100, 16_000), (8000, 44_100)]
)
def test_resampling_has_no_delay_and_no_error(rates):
    from_hz, to_hz = rates
    # soxr's passband is flat to some 1e-5
    for frequency, bound_db in ((0.01, -120), (0.1, -110), (0.3, -85)):
        hz = frequency * min(rates)
        wave = np.sin(2 * np.pi * hz / from_hz * np.arange(4 * from_hz))[None]
        expected = np.sin(2 * np.pi * hz / to_hz * np.arange(4 * to_hz))
        edge = to_hz  # the sine starts and ends at once, and is not band-limited there
        for dtype in (np.float64, np.float32):
            error = resample(wave.astype(dtype), from_hz, to_hz)[0] - expected
            assert 20 * np.log10(np.abs(error[edge:-edge]).max()) < bound_db


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 44_100])
def test_the_last_sample_survives_there_and_back(rate_hz):
    wave = np.zeros((1, 5000), np.float32)
    wave[0, -1] = 1
    back = resample(resample(wave, 48_000, rate_hz), rate_hz, 48_000)[:, :5000]
    assert np.abs(back[0]).argmax() >= 4998
    assert back[0, -1] > 0.5 * rate_hz / 48_000


def test_equal_rates_pass_the_wave_on():
    wave = noise()
    resampler = Resampler(44_100, 44_100, 2)
    assert resampler.push(wave) is wave
    assert resampler.flush().shape == (2, 0)


@pytest.mark.parametrize("arguments", [(0, 8000, 1), (8000, -1, 1), (8000, 8000, 0)])
def test_rates_and_channels_are_checked(arguments):
    with pytest.raises(ValueError, match="want at least 1"):
        Resampler(*arguments)


def test_the_shape_of_a_wave_is_checked():
    with pytest.raises(ValueError, match="want"):
        Resampler(8000, 16_000, 2).push(np.zeros((3, 10), np.float32))
