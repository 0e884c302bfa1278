"""Configurations from JSON: a closed schema."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from pyunetsep.checkpoint import ModelInfo, parse_json
from pyunetsep.config import EXACT, PRESETS, ModelConfig, SeparatorConfig, from_dict, to_dict
from pyunetsep.training.config import TrainingConfig
from pyunetsep.training.state import Position

from ..guard import Limits, Target, must
from ..mutation import dumped, spoilt, spoilt_json

KINDS: tuple[type[Any], ...] = (ModelConfig, SeparatorConfig, ModelInfo, TrainingConfig, Position)
INFO = ModelInfo(name="seed", licence="MIT", training_data="none", source="made here", source_sha256="")


def target(data: bytes) -> None:
    """Each kind of configuration takes it, and gives it back as it was, or refuses it."""
    values, refusal = parse_json(data, "it"), None
    for kind in KINDS:
        try:
            config = from_dict(kind, values)
        except ValueError as error:
            refusal = error
        else:
            must(from_dict(kind, to_dict(config)) == config, "a configuration does not survive its own plain values")
            return
    if refusal is not None:
        raise refusal


def seeds() -> dict[str, bytes]:
    configs = {**PRESETS, "exact": EXACT, "info": INFO, "training": TrainingConfig(), "position": Position()}
    return {name: json.dumps(to_dict(config)).encode() for name, config in configs.items()}


def mutate(data: bytes, random: Random) -> bytes:
    if random.random() < 0.2:
        return spoilt(data, random)
    try:
        return dumped(spoilt_json(json.loads(data), random))
    except (ValueError, RecursionError):
        return spoilt(data, random)


TARGET = Target(
    run=target,
    documented=(ValueError,),
    seeds=seeds,
    mutate=mutate,
    # a digit of JSON becomes a list of one number
    limits=Limits(memory_bytes=16 * 2**20, memory_per_byte=256, cpu_s=5.0, max_bytes=8192),
)
