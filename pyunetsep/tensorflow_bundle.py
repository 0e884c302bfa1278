"""Reads TensorFlow's V2 checkpoints ("tensor bundles") with NumPy alone: no TensorFlow, no protobuf, no pickle.

A bundle is `PREFIX.index`, a sorted table in LevelDB's format that says where each tensor lies, and the shards
`PREFIX.data-0000i-of-0000n`, the tensors' bytes. Neither is trusted: every length, offset and count is checked before
it is used, and what does not fit is a `CheckpointError`.

Source: TensorFlow, core/util/tensor_bundle and core/protobuf/tensor_bundle.proto; LevelDB, doc/table_format.md.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import CheckpointError

MAX_INDEX_BYTES = 2**24
MAX_KEY_BYTES = 1024
MAX_TENSORS = 2**16
MAX_SHARDS = 1000
MAX_DIMS = 16
MAX_DATA_BYTES = 2**31  # of all tensors read by one call

FOOTER_BYTES = 48
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
TRAILER_BYTES = 5  # after each block: its compression, and the CRC of block and compression

BFLOAT16 = 14
DTYPES = {  # TensorFlow's DataType, little-endian; NumPy has no bfloat16: read as integers, then widened to float32
    1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", BFLOAT16: "<u2", 19: "<f2",
}  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def read_bundle(prefix: str | os.PathLike[str]) -> dict[str, npt.NDArray[np.generic]]:
    """Reads the tensors of a TensorFlow checkpoint, but for those of types without a fixed size (strings and the like).

    Args:
        prefix: what the checkpoint's files begin with, its `.index` file, or the folder that holds it.
    Returns:
        name -> array, in the order of the table (by name). bfloat16 comes as float32.
    Raises:
        CheckpointError: a file is missing, damaged or hostile.
    """
    prefix = find_prefix(prefix)
    index = Path(f"{prefix}.index")
    try:
        with open(index, "rb") as file:
            raw = file.read(MAX_INDEX_BYTES + 1)
        if len(raw) > MAX_INDEX_BYTES:
            raise ValueError(f"larger than the {MAX_INDEX_BYTES} bytes that an index may have")
        shards, entries = _read_index(raw)
        entries = {name: entry for name, entry in entries.items() if entry.dtype in DTYPES}
        for name, entry in entries.items():
            _check_entry(name, entry, shards)
        if sum(entry.size for entry in entries.values()) > MAX_DATA_BYTES:
            raise ValueError(f"more than {MAX_DATA_BYTES} bytes of tensors")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index}: {_reason(error)}") from error
    return {name: _read_tensor(prefix, shards, name, entry) for name, entry in entries.items()}


def find_prefix(path: str | os.PathLike[str]) -> Path:
    """The prefix of the checkpoint that `path` means: a folder, an `.index` file, or a prefix already.

    In a folder, the text file `checkpoint` says which one; without it there must be a single `.index` file.

    Raises:
        CheckpointError: there is none, or no telling which.
    """
    path = Path(path)
    if not path.is_dir():
        return path.with_suffix("") if path.suffix == ".index" else path
    try:
        with open(path / "checkpoint", "rb") as file:
            text = file.read(2**16).decode("utf-8", "replace")
    except FileNotFoundError:
        # macOS leaves "._" companions of each file on foreign disks
        found = sorted(file for file in path.glob("*.index") if not file.name.startswith("."))
        if len(found) != 1:
            raise CheckpointError(
                f"{path}: needs a TensorFlow checkpoint, one .index file; it has {len(found)}"
            ) from None
        return found[0].with_suffix("")
    except OSError as error:
        raise CheckpointError(f"{path / 'checkpoint'}: {_reason(error)}") from error
    # \s at the beginning of a line would take quadratic time over empty ones
    match = re.search(r'^[ \t]*model_checkpoint_path:\s*"([^"\\\x00-\x1f\x7f-\x9f]+)"', text, re.MULTILINE)
    if match is None:
        raise CheckpointError(f"{path / 'checkpoint'}: names no model_checkpoint_path")
    # an absolute path is one of the machine that wrote it; the files lie beside this one
    return path / re.split(r"[/\\]", match[1])[-1]


def _read_index(raw: bytes) -> tuple[int, dict[str, _Entry]]:
    """The number of shards and all entries of an index file."""
    if len(raw) < FOOTER_BYTES or not raw.endswith(MAGIC):
        raise ValueError("not the index of a TensorFlow checkpoint: it does not end in the table's magic number")
    footer = _Reader(raw[-FOOTER_BYTES : -len(MAGIC)])
    footer.handle()  # the metaindex: unused by TensorFlow
    blocks = [_Reader(value).handle() for _, value in _entries(raw, footer.handle())]
    if sum(size + TRAILER_BYTES for _, size in blocks) > len(raw):
        raise ValueError("its blocks overlap: together they are larger than the file")

    table: dict[bytes, bytes] = {}
    previous = None
    for block in blocks:
        for key, value in _entries(raw, block):
            if previous is not None and key <= previous:
                raise ValueError(f"its names are out of order or doubled at {key[:60]!r}")
            table[key] = value
            previous = key
            if len(table) > MAX_TENSORS:
                raise ValueError(f"more than {MAX_TENSORS} tensors")
    if b"" not in table:
        raise ValueError("has no header")
    header = _fields(table.pop(b""))
    shards = _number(header, 1)
    if not 1 <= shards <= MAX_SHARDS:
        raise ValueError(f"must have 1 to {MAX_SHARDS} shards, says {shards}")
    if _number(header, 2) != 0:
        raise ValueError("written on a big-endian machine; only little-endian checkpoints are read")
    return shards, {key.decode(): _entry(value) for key, value in table.items()}


def _entries(raw: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block; a key is stored as what it adds to the beginning of the one before."""
    offset, size = handle
    if offset + size + TRAILER_BYTES > len(raw) - FOOTER_BYTES or size < 4:
        raise ValueError(f"a block of {size} bytes at {offset} does not fit into the file")
    body, trailer = raw[offset : offset + size], _Reader(raw[offset + size : offset + size + TRAILER_BYTES])
    compression = trailer.take(1)
    if not _is_intact(body + compression, trailer.fixed(4)):
        raise ValueError(f"the block at {offset} is damaged (CRC-32C)")
    if compression != b"\0":
        raise ValueError(f"the block at {offset} is compressed; only uncompressed tables are read")
    end = size - 4 - 4 * int.from_bytes(body[-4:], "little")  # offsets for binary search follow; not needed here
    if end < 0:
        raise ValueError(f"the block at {offset} has more restart points than bytes")
    reader = _Reader(body[:end])
    key = b""
    while reader.left:
        shared, fresh, length = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key) or shared + fresh > MAX_KEY_BYTES:
            raise ValueError(f"the block at {offset} has a name with a wrong or an excessive length")
        key = key[:shared] + reader.take(fresh)
        yield key, reader.take(length)


def _entry(message: bytes) -> _Entry:
    """Decodes a BundleEntryProto."""
    fields = _fields(message)
    dims = _messages(_fields(b"".join(_messages(fields, 2))), 2)
    return _Entry(
        dtype=_number(fields, 1),
        shape=tuple(_number(_fields(dim), 1) for dim in dims),
        shard=_number(fields, 3),
        offset=_number(fields, 4),
        size=_number(fields, 5),
        crc=_number(fields, 6),
        sliced=7 in fields,
    )


def _check_entry(name: str, entry: _Entry, shards: int) -> None:
    problem = None
    if entry.sliced:
        problem = "is a partitioned variable, which is not read"
    elif len(entry.shape) > MAX_DIMS or math.prod(max(size, 1) for size in entry.shape) > MAX_DATA_BYTES:
        problem = f"is too large: {entry.shape[:MAX_DIMS]}"
    elif math.prod(entry.shape) * np.dtype(DTYPES[entry.dtype]).itemsize != entry.size:
        problem = f"has {entry.size} bytes, which do not fit its shape {entry.shape}"
    elif entry.shard >= shards:
        problem = f"lies in shard {entry.shard} of {shards}"
    if problem:
        raise ValueError(f"tensor {name!r} {problem}")


def _read_tensor(prefix: Path, shards: int, name: str, entry: _Entry) -> npt.NDArray[np.generic]:
    shard = Path(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")
    try:
        with open(shard, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if entry.offset + entry.size > size:
                raise ValueError(
                    f"too short: tensor {name!r} ends at byte {entry.offset + entry.size}, the file at {size}"
                )
            raw = np.empty(entry.size, np.uint8)
            file.seek(entry.offset)
            if file.readinto(raw.data) != entry.size:
                raise ValueError(f"shrank while tensor {name!r} was read")
        if not _is_intact(raw, entry.crc):
            raise ValueError(f"tensor {name!r} is damaged (CRC-32C)")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shard}: {_reason(error)}") from error
    tensor = raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
    return (tensor.astype("<u4") << 16).view("<f4") if entry.dtype == BFLOAT16 else tensor


class _Reader:
    """Takes bytes apart from left to right; reading past the end is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"{count} bytes are wanted where {self.left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def fixed(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def varint(self) -> int:
        """Seven bits a byte, the lowest first; the last byte's top bit is clear."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.fixed(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80 and value < 2**64:
                return value
        raise ValueError("a number has more than 64 bits")

    def handle(self) -> tuple[int, int]:
        """Offset and size of a block."""
        return self.varint(), self.varint()


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """A protocol buffer message as field number -> values, in order."""
    reader = _Reader(message)
    fields: dict[int, list[int | bytes]] = {}
    while reader.left:
        number, wire_type = divmod(reader.varint(), 8)
        value: int | bytes
        if wire_type == 0:
            value = reader.varint()
        elif wire_type == 1:
            value = reader.fixed(8)
        elif wire_type == 2:
            value = reader.take(reader.varint())
        elif wire_type == 5:
            value = reader.fixed(4)
        else:
            raise ValueError(f"a message has the unknown wire type {wire_type}")
        fields.setdefault(number, []).append(value)
    return fields


def _number(fields: dict[int, list[int | bytes]], number: int) -> int:
    """A field's number; absent means 0, and of several the last counts, as protocol buffers have it."""
    value = fields.get(number, [0])[-1]
    if isinstance(value, bytes):
        raise ValueError(f"field {number} of a message must be a number")
    return value


def _messages(fields: dict[int, list[int | bytes]], number: int) -> list[bytes]:
    values = [value for value in fields.get(number, []) if isinstance(value, bytes)]
    if len(values) != len(fields.get(number, [])):
        raise ValueError(f"field {number} of a message must be a message")
    return values


def _reason(error: Exception) -> str:
    """Without the path, which `OSError` repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# The CRC's register is a polynomial over GF(2) modulo Castagnoli's, the highest power in bit 0.
POLYNOMIAL = 0x82F63B78
SHORT_BYTES = 512  # up to which one byte after the other is faster than NumPy


def crc32c(data: bytes | npt.NDArray[np.uint8]) -> int:
    """The CRC-32C (Castagnoli) of bytes, at NumPy's speed.

    A byte d bytes before another counts as multiplied by x^(8 d), which is linear. So a long message, as 32-bit words,
    is folded until one word is left: its front is multiplied by that power and added (xor) to its back, 2^k words.
    """
    whole = len(data) // 4 * 4 if len(data) > SHORT_BYTES else 0
    words = np.frombuffer(data, np.uint8)[:whole].view("<u4").copy()
    register = 0xFFFFFFFF
    if len(words):
        words[0] ^= register
        while len(words) > 1:
            step = (len(words) - 1).bit_length() - 1
            front, back = words[: -(2**step)], words[-(2**step) :]
            back[-len(front) :] ^= _shift(front, step)
            words = back
        register = int(_shift(words, 0)[0])
    table = _byte_table()
    for byte in bytes(data[whole:]):
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> tuple[int, ...]:
    """What eight zero bits after it make of each byte."""
    return tuple(_shift_bits(byte, 8) for byte in range(256))


def _shift(words: npt.NDArray[np.uint32], step: int) -> npt.NDArray[np.uint32]:
    """Multiplies registers by x^(32 * 2^step): what as many zero bits after them do."""
    tables, octets = _shift_tables(step), words.view(np.uint8).reshape(-1, 4)
    return tables[0][octets[:, 0]] ^ tables[1][octets[:, 1]] ^ tables[2][octets[:, 2]] ^ tables[3][octets[:, 3]]


@functools.cache
def _shift_tables(step: int) -> npt.NDArray[np.uint32]:
    """[4, 256]: the products of all values of each of a register's bytes."""
    if step == 0:
        products = np.array([_shift_bits(1 << bit, 32) for bit in range(32)], "<u4")
    else:  # twice as far is the same way again
        products = _shift(_shift((1 << np.arange(32)).astype("<u4"), step - 1), step - 1)
    chosen = np.arange(256)[:, None] >> np.arange(8) & 1
    return np.bitwise_xor.reduce(chosen * products.reshape(4, 1, 8), axis=2).astype("<u4")


def _shift_bits(register: int, count: int) -> int:
    for _ in range(count):
        register = (register >> 1) ^ (POLYNOMIAL if register & 1 else 0)
    return register


def _is_intact(data: bytes | npt.NDArray[np.uint8], stored: int) -> bool:
    return _masked(crc32c(data)) == stored


def _masked(crc: int) -> int:
    """As checkpoints store it, so that the CRC of bytes that hold a CRC stays sound."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
