"""Bundles are written here byte by byte, read back, and damaged in every way."""

from __future__ import annotations

import contextlib
import shutil
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyunetsep import tensorflow_bundle
from pyunetsep.errors import CheckpointError
from pyunetsep.tensorflow_bundle import crc32c, find_prefix, read_bundle
from tests.properties import given, settings, st

MAGIC = bytes.fromhex("57fb808b247547db")
TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "int64": 9, "bool": 10}
TENSORS = {
    "conv2d/bias": np.array([1.5, -2.0], np.float32),
    "conv2d/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "conv2d_1/bias": np.array([1.0, 2.0, 3.0]),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False, True]),
    "global_step": np.array(7, np.int64),
}


# A writer, independent of the reader


def eight_bits(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


CRC_TABLE = [eight_bits(byte) for byte in range(256)]


def crc_of(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register = CRC_TABLE[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    head = b""
    while value >= 0x80:
        head += bytes([value & 0x7F | 0x80])
        value >>= 7
    return head + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def entry(dtype: int, shape: Iterable[int], shard: int, offset: int, size: int, crc: int, extra: bytes = b"") -> bytes:
    dims = b"".join(message(2, number(1, length)) for length in shape)
    place = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, dtype) + message(2, dims) + place + varint(6 << 3 | 5) + struct.pack("<I", crc) + extra


def block(pairs: Iterable[tuple[bytes, bytes]], restarts: tuple[int, ...] = (0,), compression: int = 0) -> bytes:
    body, previous = b"", b""
    for key, value in pairs:
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return finished(body + struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts)), compression)


def finished(body: bytes, compression: int = 0) -> bytes:
    content = body + bytes([compression])
    return content + struct.pack("<I", masked(crc_of(content)))


def table(*blocks: bytes, index: bytes | None = None) -> bytes:
    """An index file of these data blocks."""
    content, handles = b"", []
    for i, data in enumerate(blocks):
        handles.append((str(i).encode(), varint(len(content)) + varint(len(data) - 5)))
        content += data
    footer = b""
    for data in (block([]), index or block(handles)):
        footer += varint(len(content)) + varint(len(data) - 5)
        content += data
    return content + footer.ljust(40, b"\0") + MAGIC


HEADER = (b"", number(1, 1) + message(3, number(1, 1)))


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray[Any, Any]], shards: int = 1) -> None:
    """Writes a checkpoint whose tensors go to the shards in turn."""
    data = [b""] * shards
    pairs = [(b"", number(1, shards))]
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        raw, shard = tensor.tobytes(), i % shards
        dtype = TYPES[tensor.dtype.name]
        place = entry(dtype, tensor.shape, shard, len(data[shard]), len(raw), masked(crc_of(raw)))
        pairs.append((name.encode(), place))
        data[shard] += raw
    middle = len(pairs) // 2
    Path(f"{prefix}.index").write_bytes(table(block(pairs[:middle]), block(pairs[middle:])))
    for i, content in enumerate(data):
        Path(f"{prefix}.data-{i:05d}-of-{shards:05d}").write_bytes(content)


# Reading


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "model", TENSORS)
    return tmp_path / "model"


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert list(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, strict=True)


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_what_was_written(tmp_path: Path, shards: int) -> None:
    write_bundle(tmp_path / "model", TENSORS, shards)
    assert_same(read_bundle(tmp_path / "model"), TENSORS)


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    raw = np.array([1.0, -3.5], "<f4").view("<u2")[1::2].tobytes()
    pair = (b"x", entry(14, [2], 0, 0, 4, masked(crc_of(raw))))
    (tmp_path / "model.index").write_bytes(table(block([HEADER, pair])))
    (tmp_path / "model.data-00000-of-00001").write_bytes(raw)
    np.testing.assert_array_equal(read_bundle(tmp_path)["x"], np.array([1.0, -3.5], np.float32), strict=True)


def test_strings_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.index").write_bytes(table(block([HEADER, (b"text", entry(7, [], 0, 0, 9, 0))])))
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(9))
    assert read_bundle(tmp_path) == {}


# Finding


def test_finds_the_checkpoint_in_a_folder(prefix: Path) -> None:
    folder = prefix.parent
    assert find_prefix(folder) == find_prefix(prefix) == find_prefix(f"{prefix}.index") == prefix
    (folder / "._model.index").write_bytes(b"Mac")
    assert find_prefix(folder) == prefix
    (folder / "other.index").write_bytes(b"")
    with pytest.raises(CheckpointError, match="it has 2"):
        find_prefix(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/home/me/run/model"\nall_model_checkpoint_paths: ""')
    assert find_prefix(folder) == prefix
    (folder / "checkpoint").write_text("nonsense")
    with pytest.raises(CheckpointError, match="names no model_checkpoint_path"):
        find_prefix(folder)


@pytest.mark.parametrize("lost", ["model.index", "model.data-00000-of-00001"])
def test_missing_files_are_named(prefix: Path, lost: str) -> None:
    (prefix.parent / lost).unlink()
    with pytest.raises(CheckpointError, match=rf"{lost}: No such file"):
        read_bundle(prefix)


# Damage


@pytest.mark.parametrize("file", ["model.index", "model.data-00000-of-00001"])
def test_every_flipped_byte_that_is_read_is_noticed(prefix: Path, file: str) -> None:
    path = prefix.parent / file
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        try:
            found = read_bundle(prefix)
        except CheckpointError:
            continue
        assert file == "model.index"  # the metaindex block and the footer's padding are not read
        assert_same(found, TENSORS)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_bundle(folder / "model", TENSORS)
    return folder


@settings(max_examples=300)
@given(data=st.data())
def test_random_damage_is_a_checkpoint_error_or_harmless(sound: Path, data: st.DataObject) -> None:
    damaged = sound.with_name("damaged")
    shutil.copytree(sound, damaged, dirs_exist_ok=True)
    path = damaged / data.draw(st.sampled_from(["model.index", "model.data-00000-of-00001"]))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    for checks_crc in (True, False):  # without it the damage gets further
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CheckpointError):
            if not checks_crc:
                patch.setattr(tensorflow_bundle, "_is_intact", lambda data, stored: True)
            assert set(read_bundle(damaged)) == set(TENSORS) or not checks_crc


def one(**changes: Any) -> bytes:
    """A table with one tensor of four floats, `entry` changed."""
    place = {"dtype": 1, "shape": [4], "shard": 0, "offset": 0, "size": 16, "crc": masked(crc_of(bytes(16)))}
    return table(block([HEADER, (b"x", entry(**{**place, **changes}))]))


def raw_block(body: bytes) -> bytes:
    return table(finished(body + struct.pack("<II", 0, 1)))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "magic number"),
    "short": (MAGIC, "magic number"),
    "wrong magic": (one()[:-1] + b"\0", "magic number"),
    "no header": (table(block([(b"x", b"")])), "has no header"),
    "big-endian": (table(block([(b"", number(1, 1) + number(2, 1))])), "big-endian"),
    "no shards": (table(block([(b"", b"\x18\x01")])), "1 to 1000 shards"),
    "a million shards": (table(block([(b"", number(1, 10**6))])), "1 to 1000 shards"),
    "compressed": (table(block([HEADER], compression=1)), "compressed"),
    "restarts": (table(finished(struct.pack("<I", 2**32 - 1))), "more restart points than bytes"),
    "block too small": (table(finished(b"\0\0\0")), "does not fit"),
    "block outside": (table(index=block([(b"0", varint(2**40) + varint(8))])), "does not fit"),
    "huge block": (table(index=block([(b"0", varint(0) + varint(2**63))])), "overlap"),
    "overlapping blocks": (table(block([HEADER]), index=block([(b"%d" % i, b"\0\x0d") for i in range(9)])), "overlap"),
    "endless number": (table(index=block([(b"0", b"\xff" * 11)])), "more than 64 bits"),
    "65-bit number": (table(index=block([(b"0", b"\xff" * 9 + b"\x02")])), "more than 64 bits"),
    "cut number": (table(index=block([(b"0", b"\xff")])), "1 bytes are wanted where 0 are left"),
    "shared too long": (raw_block(b"\x01\x00\x00"), "wrong or an excessive length"),
    "key too long": (raw_block(b"\x00" + varint(2**20) + b"\x00"), "wrong or an excessive length"),
    "value too long": (raw_block(b"\x00\x00" + varint(2**60)), "are wanted where 0 are left"),
    "cut entry": (raw_block(b"\x00"), "are wanted where 0 are left"),
    "doubled name": (table(block([HEADER, (b"x", b"")]), block([(b"x", b"")])), "out of order or doubled"),
    "unsorted names": (table(block([HEADER, (b"y", b""), (b"x", b"")])), "out of order or doubled"),
    "bad UTF-8": (table(block([HEADER, (b"\xff", b"")])), "utf-8"),
    "wire type": (table(block([HEADER, (b"x", b"\x0b")])), "unknown wire type 3"),
    "string for number": (table(block([HEADER, (b"x", message(1, b"abc"))])), "must be a number"),
    "number for message": (table(block([HEADER, (b"x", number(2, 5))])), "must be a message"),
    "message too long": (table(block([HEADER, (b"x", b"\x12\x7f")])), "127 bytes are wanted"),
    "size and shape": (one(size=12), "do not fit its shape"),
    "negative dimension": (one(shape=[2**64 - 1]), "too large"),
    "overflowing shape": (one(shape=[2**32, 2**32], size=0), "too large"),
    "overflowing empty shape": (one(shape=[0, 2**63, 2**63], size=0), "too large"),
    "too many dimensions": (one(shape=[1] * 60, size=4), "too large"),
    "huge tensor": (one(shape=[2**30], size=2**32), "more than 2147483648 bytes"),
    "shard": (one(shard=1), "lies in shard 1 of 1"),
    "sliced": (one(extra=message(7, b"")), "partitioned"),
    "outside": (one(offset=1), "ends at byte 17, the file at 16"),
    "far outside": (one(offset=2**64 - 1), "the file at 16"),
    "tensor CRC": (one(crc=1), "tensor 'x' is damaged"),
}


@pytest.mark.parametrize(("index", "problem"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_indices(tmp_path: Path, index: bytes, problem: str) -> None:
    (tmp_path / "model.index").write_bytes(index)
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(16))
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_bundle(tmp_path / "model")
    assert str(caught.value).startswith(str(tmp_path))


def test_hostile_table_has_a_sound_twin(tmp_path: Path) -> None:
    (tmp_path / "model.index").write_bytes(one())
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(16))
    assert_same(read_bundle(tmp_path), {"x": np.zeros(4, np.float32)})


def test_many_references_to_one_range_do_not_fill_memory(tmp_path: Path) -> None:
    size = 2**28
    pairs = [(b"x%03d" % i, entry(1, [size // 4], 0, 0, size, 0)) for i in range(100)]
    (tmp_path / "model.index").write_bytes(table(block([HEADER, *pairs])))
    with open(tmp_path / "model.data-00000-of-00001", "wb") as file:
        file.truncate(size)  # sparse
    with pytest.raises(CheckpointError, match="more than 2147483648 bytes"):
        read_bundle(tmp_path)


def test_index_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "model.index").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="larger than"):
        read_bundle(tmp_path / "model")


# CRC-32C


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, appendix B.4, and the usual check value
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_of_published_examples(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, *range(511, 550), 4099])
def test_crc32c_of_all_lengths(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == crc32c(np.frombuffer(data, np.uint8)) == crc_of(data)


def test_crc32c_is_fast_and_leaves_its_input_alone() -> None:
    data = np.full(20_000_000, 7, np.uint8)
    begin = time.perf_counter()
    crc32c(data)
    assert time.perf_counter() - begin < 10  # 0.1 s on an idle core; a loop over bytes takes longer than this
    assert (data == 7).all()
