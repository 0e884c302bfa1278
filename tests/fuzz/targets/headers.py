"""What the audio front door reads of a header by itself: where the sound lies, and whether it is all there."""

from __future__ import annotations

import struct
from random import Random

from pyunetsep.audio.headers import (
    closed_header,
    ends_within_mp4_box,
    ends_within_ogg_page,
    mp3_header,
    sound_extent,
)

from ..files import InputFile
from ..guard import Limits, Target, must
from ..mutation import NUMBERS, spoilt

FILE = InputFile("song")


def target(data: bytes) -> None:
    """Never an error: what cannot be understood is left to the decoders."""
    FILE.write(data)
    with open(FILE.path, "rb") as file:
        extent = sound_extent(file)
        if extent is not None:
            must(extent.available == max(0, len(data) - extent.start), "counts other bytes than there are")
            must(extent.promised is None or extent.promised >= 0, "promises less than nothing")
            if extent.promised is None:
                head = closed_header(file, extent)
                must(head is None or extent.start <= len(head) <= extent.start + 36, "makes another header")
        mp3 = mp3_header(file)
        if mp3 is not None:
            must(mp3.available == len(data) - mp3.start > 0, "counts other bytes than there are")
            must(mp3.promised is None or mp3.promised > 0, "promises nothing")
        ends_within_ogg_page(file)
        ends_within_mp4_box(file)


def seeds() -> dict[str, bytes]:
    def chunk(kind: bytes, content: bytes, order: str = "<") -> bytes:
        return kind + struct.pack(f"{order}I", len(content)) + content

    samples = bytes(range(40))
    form = chunk(b"fmt ", bytes(16))
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 100, 40, 20, 0))
    guid = b"-pyunetsep--"
    aiff = chunk(b"COMM", bytes(18), ">") + chunk(b"SSND", samples, ">")
    page = b"OggS\0" + bytes(21) + bytes([1, 40]) + samples
    frame = bytes.fromhex("fffb9064")
    xing = frame + bytes(32) + b"Xing" + struct.pack(">III", 3, 2, 900) + bytes(860)
    return {
        "wav": b"RIFF" + struct.pack("<I", 84) + b"WAVE" + form + chunk(b"data", samples),
        "wav-of-a-pipe": b"RIFF" + struct.pack("<I", 0) + b"WAVE" + form + b"data\0\0\0\0" + samples,
        "rifx": b"RIFX" + struct.pack(">I", 84) + b"WAVE" + chunk(b"data", samples, ">"),
        "rf64": b"RF64\xff\xff\xff\xffWAVE" + ds64 + form + b"data\xff\xff\xff\xff" + samples,
        "aiff": b"FORM" + struct.pack(">I", 80) + b"AIFF" + aiff,
        "w64": b"riff" + bytes(36) + b"data" + guid + struct.pack("<Q", 64) + samples,
        "caf": b"caff\0\1\0\0"
        + b"desc"
        + struct.pack(">q", 32)
        + bytes(32)
        + b"data"
        + struct.pack(">q", 40)
        + samples,
        "caf-of-a-pipe": b"caff\0\1\0\0data" + struct.pack(">q", -1) + samples,
        "au": b".snd" + struct.pack(">II", 24, 40) + bytes(12) + samples,
        "ogg": page + page,
        "mp3": frame + bytes(900),
        "mp3-with-xing": b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + xing,
        "m4a": struct.pack(">I4s", 16, b"ftyp") + bytes(8) + struct.pack(">I4sQ", 1, b"mdat", 40) + bytes(24),
    }


def mutate(data: bytes, random: Random) -> bytes:
    if random.random() < 0.6:
        return spoilt(data, random, head=64)
    at = random.randrange(0, max(1, min(len(data), 64)), 2)  # where sizes lie
    width, order = random.choice((4, 8)), random.choice((">", "<"))
    size = random.choice(NUMBERS) % 256**width
    return data[:at] + struct.pack(order + {4: "I", 8: "Q"}[width], size) + data[at + width :]


TARGET = Target(
    run=target,
    documented=(),
    seeds=seeds,
    mutate=mutate,
    limits=Limits(memory_bytes=2**20, memory_per_byte=16, cpu_s=5.0, max_bytes=4096),
)
