"""The state of a training run: safetensors, with the run's configuration in the header."""

from __future__ import annotations

from random import Random

import torch

from pyunetsep.errors import CheckpointError
from pyunetsep.training.config import merged
from pyunetsep.training.state import KEY, Position, State, load_state, save_state

from ..files import InputFile
from ..guard import Limits, Target, must
from .checkpoint import spoilt_safetensors

FILE, WRITTEN = InputFile("checkpoint.safetensors"), InputFile("written.safetensors")


def target(data: bytes) -> None:
    """It is the state of a run, or an error names the file."""
    FILE.write(data)
    try:
        state = load_state(FILE.path)
    except CheckpointError as error:
        must(str(error).startswith(f"{FILE.path}: "), f"names no file: {error}")
        must(str(error).isprintable(), "tells a terminal what to do")
        raise
    must(sum(tensor.nbytes for tensor in state.tensors.values()) <= len(data), "has more bytes than its file")


def seeds() -> dict[str, bytes]:
    tensors = {
        "network.vocals.head.bias": torch.zeros(2),
        "average.vocals.head.bias": torch.zeros(2),
        "optimiser.vocals.head.bias.exp_avg": torch.zeros(1, 2),
        "optimiser.vocals.head.bias.step": torch.tensor(3.0),
    }
    path = WRITTEN.folder / "seed.safetensors"
    config = merged({"steps": 9, "channels": [3, 4], "data": ["songs"]})
    save_state(path, State(config, "0" * 64, Position(step=3), tensors))
    return {"state": path.read_bytes()}


def mutate(data: bytes, random: Random) -> bytes:
    return spoilt_safetensors(data, random, KEY)


TARGET = Target(
    run=target,
    documented=(CheckpointError,),
    seeds=seeds,
    mutate=mutate,
    # the table becomes objects, and the tensors are copied
    limits=Limits(memory_bytes=32 * 2**20, memory_per_byte=1024, cpu_s=10.0, max_bytes=8192),
)
