"""Reads Spleeter's checkpoints (Hennequin et al., JOSS 2020) into the state dicts of this package's `UNet`.

Spleeter's images are [time, frequency], this package's [bins, frames]: height and width change places.

    layer                      Spleeter                                     here
    convolution                [time, frequency, in, out]                   [out, in, bins, frames]
    transposed convolution     [time, frequency, out, in]                   [in, out, bins, frames]

Both are the same reversal of all axes, so `array.T` converts every kernel (and leaves vectors as they are).
Transposed kernels are not mirrored in either framework.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checkpoint import tensor_shapes
from .config import SPLEETER, ModelConfig
from .errors import CheckpointError
from .tensorflow_bundle import read_bundle

NORM_NAMES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
CONV_NAMES = {"weight": "kernel", "bias": "bias"}
# what training leaves beside the weights: its step count and Adam's moments
TRAINING_STATE = re.compile(r"global_step|beta[12]_power(_\d+)?|.+/Adam(_\d+)?")


def read_spleeter(path: str | os.PathLike[str], config: ModelConfig = SPLEETER) -> dict[str, dict[str, Tensor]]:
    """Reads a Spleeter checkpoint.

    Args:
        path: the folder or the prefix of a TensorFlow checkpoint.
        config: the model that it must hold; the default is Spleeter's configuration "2stems".
    Returns:
        stem -> state dict of its `UNet`, float32, without `num_batches_tracked`.
    Raises:
        CheckpointError: a file is missing or damaged, or its tensors are not those of `config`.
    """
    tensors = read_bundle(path)
    try:
        return to_states(tensors, config)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a Spleeter checkpoint of {len(config.stems)} stems: {error}") from error


def to_states(tensors: Mapping[str, npt.NDArray[Any]], config: ModelConfig) -> dict[str, dict[str, Tensor]]:
    """Renames and transposes Spleeter's tensors; every one of them must have its place.

    Raises:
        ValueError: tensors are missing, left over, or not of the expected type and shape.
    """
    states: dict[str, dict[str, Tensor]] = {stem: {} for stem in config.stems}
    shapes = tensor_shapes(config)
    names = tensor_names(config)
    if missing := [theirs for theirs in names.values() if theirs not in tensors]:
        raise ValueError(f"{len(missing)} tensors are missing, among them {missing[0]!r}")
    unread = tensors.keys() - names.values() - _unused_names(config)
    if unknown := sorted(name for name in unread if not TRAINING_STATE.fullmatch(name)):
        raise ValueError(f"{len(unknown)} tensors are unknown, among them {unknown[0]!r}")
    for ours, theirs in names.items():
        tensor, shape = tensors[theirs], shapes[ours][::-1]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise ValueError(f"{theirs!r} must be float32 {list(shape)}, is {tensor.dtype} {list(tensor.shape)}")
        stem, key = ours.split(".", 1)
        states[stem][key] = torch.from_numpy(np.ascontiguousarray(tensor.T))
    return states


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """`stem.key of the state dict` -> Spleeter's name of each tensor that the networks use.

    Keras numbers the layers of each kind through the whole program, in the order in which they were made: all of the
    first stem's network, then the second's.
    """
    blocks = len(config.unet.channels)
    names: dict[str, str] = {}

    def add(layer: str, kind: str, number: int, parts: Mapping[str, str]) -> None:
        names.update({f"{layer}.{ours}": f"{_numbered(kind, number)}/{theirs}" for ours, theirs in parts.items()})

    for s, stem in enumerate(config.stems):
        for i in range(blocks):
            add(f"{stem}.encoder.{i}.conv", "conv2d", (blocks + 1) * s + i, CONV_NAMES)
            add(f"{stem}.decoder.{i}.conv", "conv2d_transpose", blocks * s + i, CONV_NAMES)
            add(f"{stem}.decoder.{i}.norm", "batch_normalization", 2 * blocks * s + blocks + i, NORM_NAMES)
            if i < blocks - 1:
                add(f"{stem}.encoder.{i}.norm", "batch_normalization", 2 * blocks * s + i, NORM_NAMES)
        add(f"{stem}.head", "conv2d", (blocks + 1) * s + blocks, CONV_NAMES)
    return names


def _unused_names(config: ModelConfig) -> set[str]:
    """The norm after the last encoder convolution: trained and stored, but the decoder reads the raw convolution."""
    blocks = len(config.unet.channels)
    return {
        f"{_numbered('batch_normalization', 2 * blocks * s + blocks - 1)}/{part}"
        for s in range(len(config.stems))
        for part in NORM_NAMES.values()
    }


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind
