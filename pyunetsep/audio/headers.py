"""What a file's own header promises: libsndfile reads a file that was cut off short without a word."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

_FOUR_GIB = 1 << 32
_MAX_CHUNKS = 10_000
_MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True)
class SoundExtent:
    """Where the sound lies in a file of chunks.

    Attributes:
        start: of the sound's first byte, in bytes.
        promised: bytes of sound; None if the header leaves it to the end of the file (it was written to a pipe).
        available: bytes from `start` to the end of the file.
        size_at: offset of the field that holds `promised`; its `struct` format is `size_format`.
        size_bias: what the field counts besides the sound.
    """

    start: int
    promised: int | None
    available: int
    size_at: int
    size_format: str
    size_bias: int = 0


@dataclass(frozen=True)
class _Layout:
    """How a family of chunked formats writes its chunks."""

    first: int  # offset of the first chunk
    id_bytes: int
    size_format: str
    size_bias: int  # bytes of the chunk's own header that its size counts
    align: int
    sound: bytes  # how the id of the sound chunk starts


_WAV = _Layout(12, 4, "<I", 0, 2, b"data")
_LAYOUTS = {
    b"RIFF": _WAV,
    b"RF64": _WAV,
    b"BW64": _WAV,
    b"RIFX": _Layout(12, 4, ">I", 0, 2, b"data"),
    b"FORM": _Layout(12, 4, ">I", 0, 2, b"SSND"),
    b"riff": _Layout(40, 16, "<Q", 24, 8, b"data"),  # W64
    b"caff": _Layout(8, 4, ">q", 0, 1, b"data"),
}


def sound_extent(file: BinaryIO) -> SoundExtent | None:
    """Where the sound of a WAV, RF64, W64, AIFF, CAF or AU file lies; None for other files or without a sound chunk."""
    end = file.seek(0, os.SEEK_END)
    magic = _read(file, 0, 12)
    if magic[:4] == b".snd":
        start, promised = struct.unpack(">II", magic[4:12].ljust(8, b"\0"))
        if start < len(magic):
            return None  # within its own fields
        open_ended = promised == _FOUR_GIB - 1 and start <= end
        return SoundExtent(start, None if open_ended else promised, max(0, end - start), 8, ">I")
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and magic[8:12] != b"WAVE":
        return None
    if magic[:4] == b"FORM" and magic[8:12] not in (b"AIFF", b"AIFC"):
        return None
    layout = _LAYOUTS.get(magic[:4])
    return _find_sound(file, end, layout, magic) if layout else None


def _find_sound(file: BinaryIO, end: int, layout: _Layout, magic: bytes) -> SoundExtent | None:
    size_bytes = struct.calcsize(layout.size_format)
    head_bytes = layout.id_bytes + size_bytes
    at, ds64_at = layout.first, None
    for _ in range(_MAX_CHUNKS):
        head = _read(file, at, head_bytes) if at < end else b""
        if len(head) < head_bytes:
            return None
        size = struct.unpack(layout.size_format, head[layout.id_bytes :])[0] - layout.size_bias
        start = at + head_bytes
        if head.startswith(layout.sound):
            size_at, size_format = at + layout.id_bytes, layout.size_format
            if ds64_at is not None and size == _FOUR_GIB - 1:
                size_at, size_format = ds64_at + 8, "<Q"
                size = struct.unpack("<Q", _read(file, size_at, 8).ljust(8, b"\0"))[0]
            promised = None if _is_placeholder(size, start, end, magic) else size
            if promised is not None and magic[:4] == b"caff":  # ALAC's packet table may follow the sound
                promised = max(promised, _end_of_chunks(file, start + promised, end, layout) - start)
            return SoundExtent(start, promised, end - start, size_at, size_format, layout.size_bias)
        if size < 0:
            return None
        if head.startswith(b"ds64"):
            ds64_at = start
        at = start + -(-size // layout.align) * layout.align
    return None


def _end_of_chunks(file: BinaryIO, at: int, end: int, layout: _Layout) -> int:
    head_bytes = layout.id_bytes + struct.calcsize(layout.size_format)
    for _ in range(_MAX_CHUNKS):
        head = _read(file, at, head_bytes) if at < end else b""
        if len(head) < head_bytes:
            break
        at += head_bytes + max(0, struct.unpack(layout.size_format, head[layout.id_bytes :])[0])
    return at


def _is_placeholder(size: int, start: int, end: int, magic: bytes) -> bool:
    """Whether a writer that could not seek back (a pipe, a crash) left `size` behind.

    ffmpeg leaves 0xFFFFFFFF, sox 0x7FFFF000, lame 0x7FFFFFFF, arecord 0x80000000, each less a header or the rest
    of a block, and others 0. A file that was really meant to be within 4 KiB of 2 or 4 GiB and was then cut off is
    mistaken for one of these: the price of reading pipes.
    """
    available = end - start
    if size in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) or size < 0:
        return True
    if size == 0:  # an empty file, unless the container's own size says that it was never finished
        whole = struct.unpack(">I" if magic[:4] in (b"RIFX", b"FORM") else "<I", magic[4:8])[0]
        counts_whole = magic[:4] in (b"RIFF", b"RIFX", b"FORM") and start < whole + 8 <= end + 1
        return available > 0 and not counts_whole
    return size > available and (0x7FFFE000 <= size <= 0x80001000 or 0xFFFFE000 <= size <= 0xFFFFFFFF)


def closed_header(file: BinaryIO, extent: SoundExtent) -> bytes | None:
    """The first `extent.start` bytes with the true size filled in, for a sound that goes on to the end of the file.

    libsndfile takes a size of 0 at its word, rejects CAF's -1 and reads at most 4 GiB after 0xFFFFFFFF. A WAV over
    4 GiB becomes an RF64 one. None if the header is too large to be one.
    """
    if extent.start > _MAX_HEADER_BYTES:
        return None
    head = bytearray(_read(file, 0, extent.start))
    if head[:4] == b"RIFF" and extent.available >= _FOUR_GIB - 1:
        ds64 = struct.pack("<4sIQQQI", b"ds64", 28, extent.start + 36 + extent.available - 8, extent.available, 0, 0)
        struct.pack_into("<I", head, extent.size_at, _FOUR_GIB - 1)
        return b"RF64\xff\xff\xff\xffWAVE" + ds64 + bytes(head[12:])
    # AIFF, AU and RIFX hold 32 bits and have no larger sibling; libsndfile reads what it can
    largest = (1 << 8 * struct.calcsize(extent.size_format)) - 1
    size = min(extent.available + extent.size_bias, largest)
    struct.pack_into(extent.size_format, head, extent.size_at, size)
    return bytes(head)


def ends_within_ogg_page(file: BinaryIO) -> bool:
    """Whether the last Ogg page is cut off.

    A missing end-of-stream flag alone says nothing: recorded web radio has none. Bytes after the last page (a tag)
    say nothing either.
    """
    end = file.seek(0, os.SEEK_END)
    tail = _read(file, max(0, end - 2 * 65_307), 2 * 65_307)  # the largest page, twice
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return False
    head = tail[at : at + 27]
    if len(head) < 27:
        return True
    lacing = tail[at + 27 : at + 27 + head[26]]
    return at + 27 + head[26] + sum(lacing) > len(tail)


def ends_within_mp4_box(file: BinaryIO) -> bool:
    """Whether an MP4 file (m4a, mov) lacks its end or its index. Meant for files that cannot be decoded."""
    end = file.seek(0, os.SEEK_END)
    at = 0
    kinds: list[bytes] = []
    while len(kinds) < _MAX_CHUNKS and at < end and len(head := _read(file, at, 16)) >= 8:
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1:  # a 64-bit size follows
            size = int.from_bytes(head[8:], "big")
        at += max(size, 8) if size else end - at
        kinds.append(kind)
    return kinds[:1] == [b"ftyp"] and (at > end or (b"mdat" in kinds and b"moov" not in kinds))


@dataclass(frozen=True)
class Mp3Header:
    """The first frame of an MPEG audio file, after its ID3v2 tags.

    Attributes:
        start: offset of the frame in bytes.
        counts_frames: whether it is a Xing, Info or VBRI frame that counts the frames.
        promised: bytes from `start` that the frame promises; None if it does not say.
        available: bytes from `start` to the end of the file.
        unbounded: a frame to be put before `start` that promises more than any file has; None for layers I and II.
    """

    start: int
    counts_frames: bool
    promised: int | None
    available: int
    unbounded: bytes | None


def mp3_header(file: BinaryIO) -> Mp3Header | None:
    """Find the first MPEG audio frame; None if there is none where one has to be."""
    start = 0
    for _ in range(_MAX_CHUNKS):
        tag = _read(file, start, 10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            break
        size = (tag[6] & 127) << 21 | (tag[7] & 127) << 14 | (tag[8] & 127) << 7 | (tag[9] & 127)
        start += 10 + size + (10 if tag[5] & 0x10 else 0)
    frame = _read(file, start, 4096)
    padding = len(frame) - len(frame.lstrip(b"\0"))
    start, frame = start + padding, frame[padding:]
    available = file.seek(0, os.SEEK_END) - start
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    if frame[36:40] == b"VBRI":
        promised = struct.unpack(">I", frame[46:50].ljust(4, b"\0"))[0]
        return Mp3Header(start, True, promised or None, available, None)
    if xing := re.search(rb"\A.{13,38}?(?:Xing|Info)(.{12})", frame, re.DOTALL):
        flags, first, second = struct.unpack(">III", xing[1])
        promised = (second if flags & 1 else first) if flags & 2 else 0
        return Mp3Header(start, bool(flags & 1), promised or None, available, None)
    return Mp3Header(start, False, None, available, _unbounded_frame(frame))


def _unbounded_frame(first: bytes) -> bytes | None:
    """An Info frame for the stream that starts with `first`, which counts 2^31 - 1 frames.

    Without one, libsndfile guesses the length from the first frame's bit rate and stops there: half of a VBR song
    was gone. With this one it reads until the data ends.
    """
    version, layer = first[1] >> 3 & 3, first[1] >> 1 & 3  # version 3, 2, 0: MPEG 1, 2, 2.5; layer 1: III
    rate_index = first[2] >> 2 & 3
    if layer != 1 or version == 1 or rate_index == 3:
        return None
    rate_hz = (44100, 48000, 32000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    mono = first[3] >> 6 == 3
    # bit rate 9 of the table (128 or 80 kbit/s): a frame long enough for the Info; no CRC, no padding byte
    frame_bytes = 144 * 128_000 // rate_hz if version == 3 else 72 * 80_000 // rate_hz
    side_info = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    head = bytes([0xFF, first[1] | 1, 0x90 | rate_index << 2, first[3]])
    return (head + bytes(side_info) + b"Info" + struct.pack(">II", 1, 0x7FFFFFFF)).ljust(frame_bytes, b"\0")


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)
