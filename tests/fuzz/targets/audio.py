"""The audio front door: whatever libsndfile reads, and PyAV where it is installed."""

from __future__ import annotations

import functools
import io
import zlib
from random import Random

import numpy as np
import soundfile

from pyunetsep.audio import AudioReader
from pyunetsep.errors import AudioFileError

from ..files import InputFile
from ..guard import Limits, Target, must, unlimited_memory
from ..mutation import spoilt

try:  # here, so that its libraries are not counted as an input's memory
    import av
except ModuleNotFoundError:
    av = None

FILE = InputFile("song")
BLOCK, MAX_VALUES = 4096, 2**18
HEADER_BYTES = 300
RATE_HZ, OPUS_RATE_HZ = 44_100, 48_000


def target(data: bytes) -> None:
    """It can be read to its end, or to what the reader's own memory would allow, or an error names the file."""
    FILE.write(data)
    refusal = _refusal(data)
    if refusal is None:
        return
    text = str(refusal)
    must(text.startswith(f"{FILE.path}: "), f"names no file: {text}")
    must(text.isprintable(), "tells a terminal what to do")
    if "memory" in text.lower() or "malloc" in text.lower():  # FFmpeg also says so of sizes that no memory would do for
        with unlimited_memory():
            again = _refusal(data)
        must(str(again) == text, f"asked for more memory than it may: {text}")
    raise refusal


def _refusal(data: bytes) -> AudioFileError | None:
    """Reads the file, and every fourth one also from its middle."""
    try:
        with AudioReader(FILE.path) as reader:
            _read_through(reader)
            samples, rate_hz = reader.samples, reader.sample_rate_hz
        if zlib.crc32(data) % 4 == 0 and 2 <= samples < MAX_VALUES and rate_hz > 0:
            with AudioReader(FILE.path, start_s=samples // 2 / rate_hz) as reader:
                _read_through(reader)
    except AudioFileError as error:
        return error
    return None


def _read_through(reader: AudioReader) -> None:
    samples = 0
    for wave in reader.blocks(BLOCK):
        must(wave.shape[0] == reader.channels and wave.dtype == reader.dtype, "another wave than it says")
        samples += wave.shape[1]
        if samples * reader.channels > MAX_VALUES:  # a few bytes may well hold hours of silence
            return
    must(samples == reader.samples, f"says {reader.samples} samples, has {samples}")


def seeds() -> dict[str, bytes]:
    """Each container with its plainest sample type, and each other sample type where it is first met."""
    wave = np.sin(np.arange(100) / 5.0).astype(np.float32)[:, None] * 0.5
    files: dict[str, bytes] = {}
    seen: set[str] = set()
    for container in sorted(soundfile.available_formats(), key=lambda name: (name != "WAV", name)):
        subtypes = list(soundfile.available_subtypes(container))
        plain = next((name for name in ("PCM_16", *subtypes) if name in subtypes), None)
        for subtype in subtypes:
            if (subtype == plain or subtype not in seen) and (content := _encoded(container, subtype, wave)):
                seen.add(subtype)
                files[f"{container}-{subtype}".lower()] = content
    return files | {f"av-{name}": content for name, content in _av_files(wave).items()}


def _encoded(container: str, subtype: str, wave: np.ndarray) -> bytes | None:
    """Nothing if libsndfile cannot write that, or cannot read it."""
    file = io.BytesIO()
    try:
        soundfile.write(file, wave, OPUS_RATE_HZ if subtype == "OPUS" else RATE_HZ, subtype, format=container)
        FILE.write(file.getvalue())
        AudioReader(FILE.path).close()
    except (soundfile.SoundFileError, AudioFileError, TypeError, ValueError):
        return None
    return file.getvalue()


AV_FILES = (  # container and codec
    *(("mp4", "aac"), ("mp4", "ac3"), ("mov", "alac"), ("mov", "pcm_s16le"), ("mov", "adpcm_ima_qt"), ("adts", "aac")),
    *(("matroska", "flac"), ("matroska", "wavpack"), ("webm", "libopus"), ("ac3", "ac3"), ("eac3", "eac3")),
    *(("avi", "mp2"), ("flv", "libmp3lame"), ("flv", "aac"), ("mpegts", "mp2"), ("mpeg", "mp2"), ("tta", "tta")),
    *(("asf", "wmav2"), ("wv", "wavpack"), ("amr", "libopencore_amrnb")),
)


def _av_files(wave: np.ndarray) -> dict[str, bytes]:
    """What the installed FFmpeg can write; nothing without PyAV."""
    files: dict[str, bytes] = {}
    for container, codec in AV_FILES if av else ():
        try:
            files[f"{container}-{codec}"] = _av_encoded(container, codec, wave)
        except (av.error.FFmpegError, ValueError):
            continue
    return files


def _av_encoded(container: str, codec: str, wave: np.ndarray) -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format=container) as output:
        rate_hz = 8_000 if container == "amr" else 48_000
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        if container in ("amr", "asf"):
            stream.codec_context.bit_rate = 12_200 if container == "amr" else 64_000
        to_codec = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate_hz)
        repeated = np.tile(wave.T, 64 if container == "asf" else 8)
        frame = av.AudioFrame.from_ndarray(repeated, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        fifo = av.AudioFifo()
        for converted in to_codec.resample(frame):
            fifo.write(converted)
        size = stream.codec_context.frame_size
        while piece := fifo.read(size or 0, partial=True):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return content.getvalue()


def mutate(data: bytes, random: Random) -> bytes:
    changed = spoilt(data, random, head=HEADER_BYTES)
    return _ogg_repaired(changed) if data.startswith(b"OggS") and random.random() < 0.9 else changed


@functools.cache
def _ogg_table() -> tuple[int, ...]:
    """The CRC of each byte: x^32 + ... modulo 0x04C11DB7, the highest power first."""
    table = []
    for byte in range(256):
        register = byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(register)
    return tuple(table)


def _ogg_repaired(data: bytes) -> bytes:
    """With right checksums, without which a decoder would not even look at a page."""
    table, repaired = _ogg_table(), bytearray(data)
    at = data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + len(lacing) + sum(lacing)
        repaired[at + 22 : at + 26] = bytes(4)
        register = 0
        for byte in repaired[at:end]:
            register = (register << 8 & 0xFFFFFFFF) ^ table[register >> 24 ^ byte]
        repaired[at + 22 : at + 26] = register.to_bytes(4, "little")
        at = data.find(b"OggS", max(end, at + 4))
    return bytes(repaired)


TARGET = Target(
    run=target,
    documented=(AudioFileError,),
    seeds=seeds,
    mutate=mutate,
    # A frame is decoded as a whole. The largest that FFmpeg takes are TTA's of 16 channels at 1 MHz: 64 MiB each in the
    # decoder, as its frame, as floats and as an array. What is read usually takes less than 32 MiB.
    limits=Limits(memory_bytes=256 * 2**20, memory_per_byte=4096, cpu_s=20.0, max_bytes=8192),
)
