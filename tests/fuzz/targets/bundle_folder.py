"""The text file `checkpoint`, by which a folder says which of TensorFlow's checkpoints in it is the last."""

from __future__ import annotations

from random import Random

from pyunetsep.errors import CheckpointError
from pyunetsep.tensorflow_bundle import find_prefix

from ..files import InputFile
from ..guard import Limits, Target, must
from ..mutation import spoilt

FILE = InputFile("checkpoint")


def target(data: bytes) -> None:
    """It names a file in its own folder, whatever it says."""
    FILE.write(data)
    found = find_prefix(FILE.folder)
    must(found.parent == FILE.folder or found == FILE.folder, f"leaves the folder: {found}")


def seeds() -> dict[str, bytes]:
    return {
        "plain": b'model_checkpoint_path: "model"\nall_model_checkpoint_paths: "model"\n',
        "absolute": b'model_checkpoint_path: "/home/me/run/model-1000"\n',
    }


def mutate(data: bytes, random: Random) -> bytes:
    changed = spoilt(data, random)
    if random.random() < 0.1:  # what makes careless regular expressions slow
        changed += random.choice((b"\n", b" ", b"\t", b'model_checkpoint_path:"', b"\\", b"/")) * random.randrange(8000)
    return changed


TARGET = Target(
    run=target,
    documented=(CheckpointError,),
    seeds=seeds,
    mutate=mutate,
    limits=Limits(memory_bytes=4 * 2**20, memory_per_byte=16, cpu_s=1.0, max_bytes=2**16),
)
