"""A training run's configuration file, TOML."""

from __future__ import annotations

import json
from random import Random

from pyunetsep.config import to_dict
from pyunetsep.training.config import TrainingConfig, merged, read_toml, to_toml

from ..files import InputFile
from ..guard import Limits, Target, must
from ..mutation import dumped, spoilt, spoilt_json

FILE, AGAIN = InputFile("run.toml"), InputFile("again.toml")


def target(data: bytes) -> None:
    """A run takes it, and can be told the same by what it writes down, or refuses it and names the file."""
    FILE.write(data)
    try:
        values = read_toml(FILE.path)
    except ValueError as error:
        must(str(error).startswith(f"{FILE.path}: "), f"names no file: {error}")
        raise
    config = merged(values)
    AGAIN.write(to_toml(config).encode())
    must(merged(read_toml(AGAIN.path)) == config, "a run's own configuration file says something else")


def seeds() -> dict[str, bytes]:
    tables = {
        "defaults": to_dict(TrainingConfig()),
        "more": {"data": ["songs", "/more/songs"], "stems": ["vocals"], "init": "spleeter-2stems", "channels": [3, 4]},
        "augmentation": {"steps": 7, "augmentation": {"remix": 0.25, "speed": 0.0}},
    }
    return {name: _toml(values) for name, values in tables.items()}


def mutate(data: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return spoilt(data, random)
    return _toml(spoilt_json({**to_dict(TrainingConfig()), "data": ["songs"], "init": "x"}, random))


def _toml(values: object) -> bytes:
    """A table of JSON as TOML; what is none stays JSON, and is refused."""
    if not isinstance(values, dict):
        return dumped(values)
    plain = [json.dumps(key).encode() + b" = " + dumped(value) for key, value in values.items() if value != {}]
    return b"\n".join(plain).replace(b'": ', b'" = ')  # inline tables


TARGET = Target(
    run=target,
    documented=(ValueError,),
    seeds=seeds,
    mutate=mutate,
    # tomllib copies what is left of its text now and then
    limits=Limits(memory_bytes=16 * 2**20, memory_per_byte=1024, cpu_s=5.0, max_bytes=8192),
)
