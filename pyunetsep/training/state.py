"""A run's state as one file, from which it goes on as if nothing had happened: safetensors, so nothing is unpickled.

    {"config": {...TrainingConfig...}, "data": digest of the recordings, "format": 1, "position": {...Position...}}

is the one value of its metadata, and its tensors are `network.<stem>.<key>`, `average.<stem>.<key>` and
`optimiser.<stem>.<parameter>.<moment>`. Examples and dropout follow from seed, step and index, and the learning rate
from the step: neither sampler, scheduler nor random numbers have a state.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..atomic import write_atomically
from ..checkpoint import blaming, parse_json, read_table
from ..config import Checked, check_bounds, from_dict, shown, to_dict
from .config import TrainingConfig

FORMAT = 1
KEY = "pyunetsep-training"


@dataclass(frozen=True)
class Position(Checked):
    """Where a run stands."""

    step: int = 0  # steps done
    best_step: int = -1  # of the best validation, -1 before there is one
    best_score_db: float = 0.0
    elapsed_s: float = 0.0  # of all processes that worked on it, one after the other
    loss_scale: float = 0.0  # of float16, 0 without
    loss_scale_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "step", 0, 10**9)
        check_bounds(self, "best_step", -1, 10**9)
        check_bounds(self, "elapsed_s", 0.0, math.inf)
        check_bounds(self, "loss_scale", 0.0, math.inf)
        check_bounds(self, "loss_scale_steps", 0, 10**9)


@dataclass(frozen=True)
class _Document(Checked):
    """The metadata's value."""

    format: int
    config: TrainingConfig
    data: str
    position: Position

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != FORMAT:
            raise ValueError(f"its format is {self.format}; this version of pyunetsep reads format {FORMAT}")


@dataclass(frozen=True)
class State:
    """What is in the file."""

    config: TrainingConfig
    data: str  # digest of the recordings: a run on other data is another run
    position: Position
    tensors: dict[str, Tensor] = field(repr=False)


def save_state(path: Path, state: State) -> None:
    """Writes or replaces the file: an interruption leaves the old one.

    Raises:
        CheckpointError: it cannot be written.
    """
    import safetensors.torch

    document = to_dict(_Document(FORMAT, state.config, state.data, state.position))
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.tensors.items()}
    content = safetensors.torch.save(tensors, {KEY: json.dumps(document, sort_keys=True)})
    with blaming(path):
        write_atomically(path, content)


def load_state(path: Path) -> State:
    """Reads the file.

    Raises:
        CheckpointError: it is missing, damaged, or no state of a training run.
    """
    import safetensors

    with blaming(path):
        with open(path, "rb") as file:
            text, stored, _ = read_table(file, KEY, "training checkpoint")
        document = from_dict(_Document, parse_json(text.encode(), "its metadata"), where="its metadata")
        try:
            with safetensors.safe_open(path, framework="pt") as tensors:
                found = {name: tensors.get_tensor(name) for name in stored}
        except safetensors.SafetensorError as error:
            raise ValueError(f"not a valid safetensors file: {shown(str(error))}") from error
    return State(document.config, document.data, document.position, found)
