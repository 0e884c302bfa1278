"""Audio through pipes: read as it comes, written as it is made."""

import dataclasses
import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile

from pyunetsep import AudioFileError, AudioFormatError, Separator, TruncatedAudioError
from pyunetsep.audio import AudioFormat, AudioReader, PipeReader, PipeWriter, open_pipe
from tests.tiny import JANSSON_LIKE, SPLEETER_LIKE, checkpoint, noise

RATE = 8_000
SONG = noise(2, 30_000).T.numpy()


def encoded(wave=SONG, **options):
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, **{"format": "WAV", "subtype": "PCM_16", **options})
    return file.getvalue()


def unsized(wav, size=0xFFFFFFFF):
    """As a program leaves it that could not go back."""
    at = wav.index(b"data") + 4
    return wav[:4] + struct.pack("<I", size) + wav[8:at] + struct.pack("<I", size) + wav[at + 4 :]


class Trickle(io.RawIOBase):
    """A pipe: no seeking, and a few bytes at a time; knows how many were taken."""

    def __init__(self, content):
        self.content, self.taken = content, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        part = self.content[self.taken : self.taken + min(len(buffer), 1000)]
        buffer[: len(part)] = part
        self.taken += len(part)
        return len(part)


def pipe(content):
    return io.BufferedReader(Trickle(content), 64)


def read_all(content, **options):
    with open_pipe(pipe(content), "the pipe", **options) as song:
        return np.concatenate([np.zeros((song.channels, 0)), *song.blocks(700)], axis=1).T, song


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0, 0x7FFFF000, 0x80000000, 0x7FFFFFFF])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_without_a_length_is_read_to_its_end(size, subtype):
    wave, song = read_all(unsized(encoded(subtype=subtype), size))
    assert isinstance(song, PipeReader) and song.samples is None
    assert (song.sample_rate_hz, song.channels, song.format) == (RATE, 2, AudioFormat("WAV", subtype))
    assert np.abs(wave - SONG).max() <= 2**-15


def test_a_wav_with_a_length_is_read_up_to_it_and_what_follows_is_taken():
    chunk = b"LIST" + struct.pack("<I", 5000) + bytes(5000)
    trickle = Trickle(encoded() + chunk)
    with open_pipe(io.BufferedReader(trickle), "the pipe") as song:
        assert isinstance(song, PipeReader) and song.samples == len(SONG)
        wave = np.concatenate(list(song.blocks(999)), axis=1).T
        song.drain()
    assert wave.shape == SONG.shape
    assert trickle.taken == len(trickle.content)  # or its writer would have met a closed pipe


def test_samples_come_out_before_the_pipe_ends():
    trickle = Trickle(unsized(encoded()))
    with open_pipe(io.BufferedReader(trickle, 64), "the pipe") as song:
        first = next(song.blocks(500))
    assert first.shape == (2, 500) and trickle.taken < len(trickle.content) / 4


@pytest.mark.parametrize("format", ["FLAC", "OGG", "AIFF", "MP3"])
def test_other_formats_are_copied_first(format):
    content = encoded(format=format, subtype=None)
    wave, song = read_all(content)
    assert isinstance(song, AudioReader)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    assert np.abs(wave - expected).max() <= 1e-6


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_a_wav_whose_samples_come_in_blocks_is_copied_first(subtype):
    wave, song = read_all(encoded(subtype=subtype))
    assert isinstance(song, AudioReader) and len(wave) >= len(SONG)


def test_an_excerpt_of_an_endless_pipe_ends():
    class Endless(Trickle):
        def readinto(self, buffer):
            self.taken %= len(self.content) - 10_000
            return super().readinto(buffer)

    with open_pipe(io.BufferedReader(Endless(unsized(encoded()))), "the pipe", duration_s=9.0) as song:
        assert sum(block.shape[1] for block in song.blocks(1000)) == 9 * RATE
        song.drain()


def test_pipes_that_do_not_wait_are_errors():
    class Impatient(Trickle):
        def readinto(self, buffer):
            return super().readinto(buffer) if self.taken < 9_000 else None

    with pytest.raises(AudioFileError, match="does not wait"), open_pipe(Impatient(encoded()), "the pipe") as song:
        list(song.blocks(1000))

    class Full(io.BytesIO):
        def write(self, data):
            return None

    writer = PipeWriter(Full(), "the sink", sample_rate_hz=RATE, channels=2, format=AudioFormat("WAV", "PCM_16"))
    with pytest.raises(AudioFileError, match="takes no more"):
        writer.write(np.ascontiguousarray(SONG.T))


def test_a_sink_that_takes_a_part_gets_the_rest():
    class Narrow(io.BytesIO):
        def write(self, data):
            return super().write(data[:1000])

    narrow = Narrow()
    writer = PipeWriter(narrow, "the sink", sample_rate_hz=RATE, channels=2, format=AudioFormat("WAV", "PCM_16"))
    writer.write(np.ascontiguousarray(SONG.T))
    writer.finish()
    assert len(narrow.getvalue()) == 44 + len(SONG) * 4


def test_what_is_needed_whole_is_copied_first():
    with open_pipe(pipe(unsized(encoded())), "the pipe", whole=True) as song:
        assert isinstance(song, AudioReader) and song.samples == len(SONG)
        path = song.path
        assert os.path.exists(path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("content", [encoded(), unsized(encoded())], ids=["sized", "unsized"])
def test_excerpts(content):
    wave, _ = read_all(content, start_s=1.0, duration_s=0.5)
    assert np.abs(wave - SONG[8_000:12_000]).max() <= 2**-15
    assert len(read_all(content, start_s=1.0, duration_s=60.0)[0]) == len(SONG) - 8_000
    with pytest.raises(ValueError, match=r"start_s: got 9, but the pipe ends at 3\.75 s"):
        read_all(content, start_s=9.0)
    for wrong in ({"start_s": -1.0}, {"duration_s": 0.0}, {"start_s": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read_all(content, **wrong)


def test_what_is_damaged_or_no_audio():
    with pytest.raises(TruncatedAudioError, match=r"the pipe: cut off: its header promises 30000 samples, 29500 are"):
        read_all(encoded()[: -500 * 4])
    with pytest.raises(AudioFileError, match=r"^the pipe: not an audio file"):
        read_all(b"no music " * 99)
    with pytest.raises(AudioFileError, match="is empty"):
        read_all(b"")
    for cut in (5, 13, 30):
        with pytest.raises(AudioFileError):
            read_all(encoded()[:cut])


def test_a_header_that_goes_on_and_on_is_copied_first():
    junk = (b"JUNK" + struct.pack("<I", 1000) + bytes(1000)) * 99
    wave, song = read_all(encoded()[:12] + junk + encoded()[12:])
    assert isinstance(song, AudioReader) and np.abs(wave - SONG).max() <= 2**-15


def written(format, samples=None, wave=SONG):
    sink = io.BytesIO()
    sink.seek = sink.tell = None  # a pipe
    writer = PipeWriter(sink, "the sink", sample_rate_hz=RATE, channels=2, format=format, samples=samples)
    for start in range(0, len(wave), 777):
        writer.write(np.ascontiguousarray(wave[start : start + 777].T))
    writer.finish()
    return sink.getvalue()


@pytest.mark.parametrize("format", ["WAV/PCM_16", "WAV/PCM_24", "WAV/FLOAT", "WAVEX/PCM_16", "FLAC/PCM_16"])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("length", [len(SONG), 3, 0])
def test_what_is_written_can_be_read(format, known, length, tmp_path):
    wave = SONG[:length]
    if format.startswith("FLAC") and not length:
        pytest.skip("FLAC holds no wave of 0 samples")
    content = written(AudioFormat(*format.split("/")), len(wave) if known else None, wave)
    path = tmp_path / "copy"
    path.write_bytes(content)
    with AudioReader(path) as reader:  # sizes and all
        assert (reader.samples, reader.sample_rate_hz, reader.channels) == (len(wave), RATE, 2)
        assert np.abs(reader.read(len(wave)).T - wave).max(initial=0) <= 2**-15
    if known and "WAV" in format and length:
        assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    elif "WAV" in format:
        assert content[4:8] == b"\xff" * 4 or known


@pytest.mark.parametrize("format", ["MP3/MPEG_LAYER_III", "OGG/VORBIS", "OGG/OPUS"])
def test_lossy_formats_can_be_read(format, tmp_path):
    path = tmp_path / "copy"
    path.write_bytes(written(AudioFormat(*format.split("/"))))
    with AudioReader(path) as reader:
        wave = reader.read(reader.samples).T
    assert len(SONG) <= len(wave) <= len(SONG) + 3 * 1152
    assert np.corrcoef(wave[: len(SONG), 0], SONG[:, 0])[0, 1] > 0.5 or "MP3" in format  # which has a delay


def test_what_a_pipe_cannot_take():
    with pytest.raises(AudioFormatError, match=r"AIFF/PCM_16 cannot be written to a pipe; wav, .*ogg can"):
        written(AudioFormat("AIFF", "PCM_16"))

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    writer = PipeWriter(Full(), "the sink", sample_rate_hz=RATE, channels=2, format=AudioFormat("WAV", "PCM_16"))
    with pytest.raises(AudioFileError, match="the sink: no space left on device"):
        writer.write(np.ascontiguousarray(SONG.T))

    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    writer = PipeWriter(Closed(), "the sink", sample_rate_hz=RATE, channels=2, format=AudioFormat("WAV", "PCM_16"))
    with pytest.raises(BrokenPipeError):
        writer.write(np.ascontiguousarray(SONG.T))


# ---- from pipe to pipe


@pytest.fixture(scope="module")
def separator():
    return Separator(checkpoint(SPLEETER_LIKE), device="cpu")


def piped(separator, content, stem="vocals", **options):
    sink = io.BytesIO()
    result = separator.separate_pipe(pipe(content), sink, stem, **options)
    wave, rate = soundfile.read(io.BytesIO(sink.getvalue()))
    assert rate == RATE and result.error is None
    return wave, result


@pytest.mark.parametrize(
    "content", [encoded(), unsized(encoded()), encoded(format="FLAC")], ids=["wav", "endless", "flac"]
)
def test_a_piped_stem_is_the_files(separator, content, tmp_path):
    path = tmp_path / "song"
    path.write_bytes(content)
    outputs = separator.separate_file(path, tmp_path / "out", container="wav", subtype="FLOAT").outputs
    expected, _ = soundfile.read(outputs["vocals"])
    wave, result = piped(separator, content, container="wav", subtype="FLOAT")
    assert wave.shape == SONG.shape and result.duration_s == len(SONG) / RATE
    assert np.abs(wave - expected).max() <= 1e-5
    sink = io.BytesIO()
    separator.separate_pipe(path, sink, "vocals", container="wav", subtype="FLOAT")  # a path is good, too
    assert np.array_equal(soundfile.read(io.BytesIO(sink.getvalue()))[0], expected)


def test_options_of_pipes(separator, tmp_path):
    seen = []
    wave, _ = piped(separator, unsized(encoded()), start_s=1.0, duration_s=1.0, progress=lambda *s: seen.append(s))
    assert len(wave) == RATE and seen[-1] == (1.0, np.inf)
    loud, _ = piped(separator, encoded(SONG * 1.9), rescale=True, subtype="PCM_16")
    assert np.abs(loud).max() <= 1
    with pytest.raises(ValueError, match="latency_s must be at least"):
        piped(separator, encoded(), latency_s=0.001)
    with pytest.raises(ValueError, match="stem must be of"):
        piped(separator, encoded(), stem="drums")


def test_a_model_of_whole_songs_takes_a_pipe_unless_it_shall_answer_soon():
    whole = Separator(checkpoint(dataclasses.replace(JANSSON_LIKE, normalisation="song")), device="cpu")
    assert piped(whole, unsized(encoded()))[0].shape == SONG.shape
    with pytest.raises(ValueError, match="cannot stream"):
        piped(whole, unsized(encoded()), latency_s=1.0)


@pytest.mark.parametrize("latency_s", [None, 0.1])
def test_stems_are_written_while_the_song_is_still_coming(separator, latency_s):
    """A writer that waits for the stem of what it has sent before it sends more."""
    there, back = os.pipe(), os.pipe()
    content = unsized(encoded(SONG[:14_000]))  # which fits the buffers of pipes
    half = 9_000 * 4

    def separate():
        with open(there[0], "rb") as source, open(back[1], "wb") as sink:
            separator.separate_pipe(source, sink, "vocals", latency_s=latency_s)

    thread = threading.Thread(target=separate, daemon=True)
    thread.start()
    with open(there[1], "wb", 0) as to, open(back[0], "rb", 0) as answer:
        to.write(content[:half])
        got = len(answer.read(44 + 4 * 1000))
        assert got > 44  # would wait for ever, were all read first
        to.write(content[half:])
        to.close()
        while part := answer.read(1 << 16):
            got += len(part)
    thread.join(timeout=60)
    assert got == 44 + 14_000 * 4
