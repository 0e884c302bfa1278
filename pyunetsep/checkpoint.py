"""A model as one file: safetensors for the weights, and in its header the configuration and where it all comes from.

The header's metadata has one key, `pyunetsep`, whose value is canonical JSON:

    {"architecture": "unet", "config": {...ModelConfig...}, "format": 1, "info": {...ModelInfo...}}

and the tensors are named `stem.key`, as in `vocals.encoder.0.conv.weight`. `num_batches_tracked` is not stored: with
a fixed batch-norm momentum nothing reads it.

A file is not trusted. Nothing in it names code; its sizes are checked against the file before anything is allocated,
its configuration goes through a closed schema, and the tensors it must have follow from that configuration alone.
torch is imported when tensors are needed, so that `read_info` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .atomic import write_atomically
from .config import ModelConfig, from_dict, shown, to_dict
from .errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from .unet import UNet

FORMAT = 1
ARCHITECTURE = "unet"  # the only one there is; a file never chooses a class by name
MAX_HEADER_BYTES = 2**20
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # as stored; networks are float32
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a user of a model should know of its origin; plain text, each at most 1000 characters."""

    name: str
    licence: str  # an SPDX identifier where there is one
    training_data: str
    source: str
    source_sha256: str  # of the file that the weights came in; empty if they were trained here

    def __post_init__(self) -> None:
        for field, value in dataclasses.asdict(self).items():
            # they are shown on terminals, which obey control characters
            if len(value) > 1000 or not value.isprintable():
                raise ValueError(f"ModelInfo.{field} must be printable text of at most 1000 characters")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: one network a stem, float32, in evaluation mode, with gradients off."""

    config: ModelConfig
    info: ModelInfo
    networks: dict[str, UNet]


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it."""

    dtype: str
    shape: tuple[int, ...]
    size: int  # in bytes


@dataclass(frozen=True)
class _Header:
    config: ModelConfig
    info: ModelInfo
    tensors: dict[str, Stored]  # in the order in which they lie in the file
    data_offset: int


def save_checkpoint(
    path: str | os.PathLike[str], config: ModelConfig, states: Mapping[str, Mapping[str, Tensor]], info: ModelInfo
) -> None:
    """Writes a model; the same model gives the same bytes.

    The file appears under its name when it is complete and on disk: an interruption leaves the old one, or none.

    Args:
        path: the file to write or replace.
        states: stem -> `UNet.state_dict()`, of float32, float16 or bfloat16 tensors on any device.
    Raises:
        ValueError: a state does not fit the configuration, or has NaN or infinite weights.
        CheckpointError: the file cannot be written.
    """
    import safetensors.torch
    import torch

    given = {
        f"{stem}.{key}": tensor
        for stem, state in states.items()
        for key, tensor in state.items()
        if not key.endswith(COUNTER)
    }
    shapes = tensor_shapes(config)
    _check_names(given, shapes)
    for name, shape in shapes.items():
        if tuple(given[name].shape) != shape or given[name].dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} must be float32, float16 or bfloat16 {list(shape)}, "
                f"is {given[name].dtype} {list(given[name].shape)}"
            )
    # copies, as safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in given.items()}
    _check_values(tensors)
    document = {"format": FORMAT, "architecture": ARCHITECTURE, "config": to_dict(config), "info": to_dict(info)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    content = safetensors.torch.save(tensors, {"pyunetsep": text})
    with blaming(path):
        write_atomically(Path(path), content)


def compact_state(network: UNet) -> dict[str, Tensor]:
    """A network's state with float16 weights, of half the size; norms stay as they are, their variances may be tiny."""
    state = network.state_dict()
    return {
        key: tensor.half() if tensor.ndim == 4 else tensor for key, tensor in state.items() if not key.endswith(COUNTER)
    }


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a model.

    Raises:
        CheckpointError: the file is missing, damaged, or not a model of this package.
    """
    import safetensors
    import safetensors.torch

    with blaming(path), open(path, "rb") as file:
        header = _read_header(file)
        shapes = tensor_shapes(header.config)
        _check_names(header.tensors, shapes)
        for name, stored in header.tensors.items():
            if stored.shape != shapes[name]:
                raise ValueError(f"{name} must be {list(shapes[name])}, is {list(stored.shape)}")
        file.seek(0)
        try:
            tensors = safetensors.torch.load(file.read())
        except safetensors.SafetensorError as error:
            raise ValueError(f"not a valid safetensors file: {shown(str(error))}") from error
        _check_values(tensors)
    states: dict[str, dict[str, Tensor]] = {stem: {} for stem in header.config.stems}
    for name, tensor in tensors.items():
        stem, key = name.split(".", 1)
        states[stem][key] = tensor
    return Checkpoint(header.config, header.info, build_networks(header.config, states))


def read_info(path: str | os.PathLike[str]) -> tuple[ModelConfig, ModelInfo]:
    """Reads configuration and origin of a model from its file's header alone, in about a millisecond.

    Raises:
        CheckpointError: the header is missing, damaged, or not that of a model of this package.
    """
    with blaming(path), open(path, "rb") as file:
        header = _read_header(file)
    return header.config, header.info


def tensor_digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a model's weights: names, types, shapes and bytes in the order of the names.

    Unlike the file's own hash it does not depend on how the header was written.

    Raises:
        CheckpointError: the file is damaged, or not a model of this package.
    """
    digest = hashlib.sha256()
    with blaming(path), open(path, "rb") as file:
        header = _read_header(file)
        offsets, offset = {}, header.data_offset
        for name, stored in header.tensors.items():
            offsets[name] = offset
            offset += stored.size
        for name, stored in sorted(header.tensors.items()):
            digest.update(f"{name} {stored.dtype} {list(stored.shape)}\n".encode())
            file.seek(offsets[name])
            digest.update(file.read(stored.size))
    return digest.hexdigest()


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """`stem.key` -> shape of every tensor that a model of this configuration has."""
    import torch

    from .unet import UNet

    with torch.device("meta"):  # shapes only: no memory, whatever the configuration
        state = UNet(config.unet).state_dict()
    return {
        f"{stem}.{key}": tuple(tensor.shape)
        for stem in config.stems
        for key, tensor in state.items()
        if not key.endswith(COUNTER)
    }


def build_networks(config: ModelConfig, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, UNet]:
    """Networks that hold the tensors of `states` (stem -> state dict), in evaluation mode, with gradients off.

    float32 tensors are not copied. Random state is left alone.
    """
    import torch

    from .unet import UNet

    networks = {}
    for stem in config.stems:
        with torch.device("meta"):
            network = UNet(config.unet)
        counters = {key: torch.zeros((), dtype=torch.long) for key in network.state_dict() if key.endswith(COUNTER)}
        weights = {key: tensor.float() for key, tensor in states[stem].items() if not key.endswith(COUNTER)}
        network.load_state_dict({**weights, **counters}, assign=True)
        networks[stem] = network.requires_grad_(False).eval()
    return networks


def _read_header(file: BinaryIO) -> _Header:
    """Reads and checks all of a model's file but the weights themselves."""
    text, tensors, data_offset = read_table(file, "pyunetsep", "model")
    document = _table(parse_json(text.encode(), "its metadata"), "its metadata")
    version = document.get("format")
    if type(version) is not int or version != FORMAT:  # to Python, True == 1
        raise ValueError(f"its format is {shown(version)}; this version of pyunetsep reads format {FORMAT}")
    if document.get("architecture") != ARCHITECTURE:
        raise ValueError(f"its architecture is {shown(document.get('architecture'))}; known is {ARCHITECTURE!r}")
    _check_names(document, ("format", "architecture", "config", "info"))
    return _Header(
        config=from_dict(ModelConfig, document["config"], where="config"),
        info=from_dict(ModelInfo, document["info"], where="info"),
        tensors=tensors,
        data_offset=data_offset,
    )


def read_table(file: BinaryIO, key: str, what: str) -> tuple[str, dict[str, Stored], int]:
    """Reads and checks a safetensors file's header; the file is a `what` of this package if its metadata has `key`.

    Returns:
        What the metadata says under `key`; the tensors, in the order in which they fill the rest of the file; the
        offset at which they begin.
    Raises:
        ValueError: it is no such file, or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"not a .safetensors {what}: its first 8 bytes are not the length of a header")
    table = _table(parse_json(file.read(length), "its header"), "its header")
    text = _table(table.pop("__metadata__", {}), "its metadata").get(key)
    if not isinstance(text, str):
        raise ValueError(f"a .safetensors file, but not a {what} of pyunetsep: its metadata has no {key!r}")
    return text, _layout(table, size - 8 - length), 8 + length


def _layout(table: Mapping[str, Any], size: int) -> dict[str, Stored]:
    """The tensors in the order of their offsets; they must fill the `size` bytes after the header without gaps."""
    tensors = []
    for name, value in table.items():
        entry = _table(value, f"tensor {shown(name)}")
        _check_names(entry, ("dtype", "shape", "data_offsets"))
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in tuple(DTYPE_BYTES):
            raise ValueError(f"tensor {shown(name)} is of type {shown(dtype)}, which is not one of F32, F16, BF16")
        if not (_are_sizes(shape) and len(shape) <= 8 and _are_sizes(offsets) and len(offsets) == 2):
            raise ValueError(f"tensor {shown(name)} needs a shape and two offsets")
        stored = Stored(dtype, tuple(shape), math.prod(shape) * DTYPE_BYTES[dtype])
        if offsets[1] - offsets[0] != stored.size:
            raise ValueError(f"tensor {shown(name)} has other offsets than its type and shape need")
        tensors.append((offsets[0], name, stored))
    tensors.sort(key=lambda item: item[0])
    end = 0
    for begin, name, stored in tensors:
        if begin != end:
            raise ValueError(f"tensor {shown(name)} begins at byte {begin}, the one before it ends at {end}")
        end += stored.size
    if end != size:
        raise ValueError(f"has {size} bytes of tensors where its header says {end}")
    return {name: stored for _, name, stored in tensors}


def _check_names(given: Mapping[str, Any], wanted: Any) -> None:
    for problem, names in (
        ("missing", [name for name in wanted if name not in given]),
        ("unknown", [name for name in given if name not in wanted]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{problem}: {shown(names[0])}{more}")


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has NaN or infinite values")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"{name} is a variance and has negative values")


def parse_json(text: bytes, what: str) -> Any:
    """JSON from a file that is not trusted: a ValueError for what is none, too deep, or has a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError(f"{what} has a key twice")
        return table

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{what} is nested too deep") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON table, is {shown(value)}")
    return value


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


@contextlib.contextmanager
def blaming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes what goes wrong inside a CheckpointError that begins with the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
