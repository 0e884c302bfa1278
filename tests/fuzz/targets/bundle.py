"""TensorFlow's checkpoints: an index, and behind its last byte, which is magic, the bytes of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np

from pyunetsep.errors import CheckpointError
from pyunetsep.tensorflow_bundle import DTYPES, FOOTER_BYTES, TRAILER_BYTES, _Reader, read_bundle
from tests.test_tensorflow_bundle import (
    HEADER,
    MAGIC,
    TENSORS,
    block,
    crc_of,
    entry,
    finished,
    masked,
    message,
    number,
    table,
    write_bundle,
)

from ..files import InputFile
from ..guard import Limits, Target, must
from ..mutation import NUMBERS, spoilt

INDEX = InputFile("model.index")
# the same bytes are the only shard, and each of two
SHARD = InputFile("model.data-00000-of-00001", "model.data-00000-of-00002", "model.data-00001-of-00002")
for shard in SHARD.folder.iterdir():
    (INDEX.folder / shard.name).symlink_to(shard)


def target(data: bytes) -> None:
    """It is a checkpoint whose tensors have the bytes that are there, or an error that names the file."""
    index, shard = _parts(data)
    INDEX.write(index)
    SHARD.write(shard)
    try:
        tensors = read_bundle(INDEX.path)
    except CheckpointError as error:
        must(str(error).startswith(str(INDEX.folder)), f"names no file: {error}")
        must(str(error).isprintable(), "tells a terminal what to do")
        raise
    for name, tensor in tensors.items():
        must(tensor.nbytes <= 2 * len(shard), f"{name!r} has more bytes than the file")  # bfloat16 becomes float32


def seeds() -> dict[str, bytes]:
    same = TENSORS["conv2d/bias"]
    written = {"sound": _written(TENSORS, 1), "two-shards": _written({"x": same, "y": same}, 2)}
    raw = bytes(range(16))
    places = {
        "x": entry(1, [4], 0, 0, 16, masked(crc_of(raw))),
        "y": entry(14, [2, 4], 0, 0, 16, masked(crc_of(raw))),
        "z": entry(7, [], 0, 0, 9, 0),
    }
    return {**written, "few": table(block([HEADER, *((name.encode(), place) for name, place in places.items())])) + raw}


def _written(tensors: Mapping[str, np.ndarray], shards: int) -> bytes:
    write_bundle(INDEX.path.with_suffix(""), tensors, shards)
    return INDEX.path.read_bytes() + SHARD.path.read_bytes()


def mutate(data: bytes, random: Random) -> bytes:
    how = random.random()
    if how < 0.3:
        return spoilt(data, random)
    return _repaired(spoilt(data, random)) if how < 0.7 else _made(random)


def _parts(data: bytes) -> tuple[bytes, bytes]:
    end = data.find(MAGIC)
    end = end + len(MAGIC) if end >= 0 else len(data)
    return data[:end], data[end:]


def _repaired(data: bytes) -> bytes:
    """With right checksums of all blocks, as far as they can be found."""
    index, shard = _parts(data)
    repaired = bytearray(index)

    def body_of(offset: int, size: int) -> bytes:
        body = index[offset : offset + size]
        if offset + size + TRAILER_BYTES <= len(index):
            repaired[offset : offset + size + TRAILER_BYTES] = finished(body, index[offset + size])
        return body

    try:
        footer = _Reader(index[-FOOTER_BYTES:])
        body_of(*footer.handle())
        reader = _Reader(body_of(*footer.handle()))
        for _ in range(20):
            _, fresh, length = reader.varint(), reader.varint(), reader.varint()
            reader.take(fresh)
            body_of(*_Reader(reader.take(length)).handle())
    except ValueError:
        pass
    return bytes(repaired) + shard


def _made(random: Random) -> bytes:
    """A sound table of entries that are not: any field may be anything, and a tensor's checksum may fit its bytes."""
    raw = random.randbytes(random.choice((0, 1, 4, 16, 64)))

    def odd(usual: int) -> int:
        return usual if random.random() < 0.8 else random.choice(NUMBERS) % 2**64

    def place() -> bytes:
        dtype = random.choice((*DTYPES, 0, 7, 99))
        shape = [odd(random.choice((0, 1, 2, 4))) for _ in range(random.choice((0, 1, 1, 2, 3, 20)))]
        size = odd(random.choice((len(raw), 4, 8, 16)))
        crc = odd(masked(crc_of(raw[:size]))) % 2**32
        extra = random.choice((b"", b"", b"", message(7, b""), number(99, 1), random.randbytes(3)))
        return spoilt_or(entry(odd(dtype), shape, odd(random.choice((0, 0, 1))), odd(0), size, crc, extra))

    def spoilt_or(content: bytes) -> bytes:
        return spoilt(content, random) if random.random() < 0.1 else content

    header = (b"", spoilt_or(number(1, odd(random.choice((1, 1, 2)))) + message(3, number(1, 1))))
    names = sorted(
        {random.randbytes(random.randrange(1, 3)) if random.random() < 0.2 else b"t%d" % i for i in range(4)}
    )
    pairs = [header, *((name, place()) for name in names)]
    if random.random() < 0.1:
        random.shuffle(pairs)
    at = random.randrange(len(pairs))
    restarts = tuple(odd(0) % 2**32 for _ in range(random.choice((0, 1, 1, 3))))
    blocks = (block(pairs[:at]), block(pairs[at:], restarts, random.random() < 0.05))
    return table(*blocks) + raw


TARGET = Target(
    run=target,
    documented=(CheckpointError,),
    seeds=seeds,
    mutate=mutate,
    # The index is read into 16 MiB, the most that it may have; a name or a field of a few bytes becomes objects of some
    # hundred.
    limits=Limits(memory_bytes=32 * 2**20, memory_per_byte=1024, cpu_s=5.0, max_bytes=4096),
)
