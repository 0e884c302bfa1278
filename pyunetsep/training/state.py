"""A run's state as one file, from which it goes on as if nothing had happened: safetensors, so nothing is unpickled.

    {"config": {...TrainingConfig...}, "data": digest of the recordings, "format": 1, "step": N, "best": {...}, ...}

is the one value of its metadata, and its tensors are `network.<stem>.<key>`, `average.<stem>.<key>` and
`optimiser.<stem>.<parameter>.<moment>`. Examples and dropout follow from seed, step and index, and the learning rate
from the step: neither sampler, scheduler nor random numbers have a state.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic import write_atomically
from ..checkpoint import blaming, parse_json
from ..config import from_dict, shown, to_dict
from ..errors import CheckpointError
from .config import TrainingConfig

FORMAT = 1
KEY = "pyunetsep-training"


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int = 0  # steps done
    best_step: int = -1  # of the best validation, -1 before there is one
    best_score_db: float = 0.0
    elapsed_s: float = 0.0  # of all processes that worked on it, one after the other
    loss_scale: float = 0.0  # of float16, 0 without
    loss_scale_steps: int = 0


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

    document = {
        "format": FORMAT,
        "config": to_dict(state.config),
        "data": state.data,
        "position": dataclasses.asdict(state.position),
    }
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

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ValueError("not the checkpoint of a training run; a model goes to --init")
            document: Any = parse_json(metadata[KEY].encode(), "its metadata")
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise ValueError(f"this version of pyunetsep reads format {FORMAT}, it is {shown(document)}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            config = from_dict(TrainingConfig, document.get("config"), where="config")
            position = from_dict(Position, document.get("position"), where="position")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: {reason}") from error
    return State(config, str(document.get("data")), position, tensors)
