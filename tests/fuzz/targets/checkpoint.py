"""A model's file: safetensors, with its configuration in the header."""

from __future__ import annotations

import dataclasses
import json
import struct
from random import Random
from typing import Any

import torch

from pyunetsep.checkpoint import ModelInfo, load_checkpoint, read_info, save_checkpoint, tensor_digest
from pyunetsep.config import JANSSON2017, SPLEETER, ModelConfig
from pyunetsep.errors import CheckpointError
from pyunetsep.unet import UNet

from ..files import InputFile
from ..guard import Limits, Target, must
from ..mutation import dumped, spoilt, spoilt_json

FILE, WRITTEN = InputFile("model.safetensors"), InputFile("written.safetensors")
INFO = ModelInfo(name="seed", licence="MIT", training_data="none", source="made here", source_sha256="")
KEY = "pyunetsep"


def target(data: bytes) -> None:
    """Its header, its digest and its networks can be had, or an error names the file."""
    FILE.write(data)
    try:
        config, info = read_info(FILE.path)
        tensor_digest(FILE.path)
        checkpoint = load_checkpoint(FILE.path)
    except CheckpointError as error:
        must(str(error).startswith(f"{FILE.path}: "), f"names no file: {error}")
        must(str(error).isprintable(), "tells a terminal what to do")
        raise
    must((checkpoint.config, checkpoint.info) == (config, info), "says something else of itself the second time")
    must(tuple(checkpoint.networks) == config.stems, "has other networks than stems")


def seeds() -> dict[str, bytes]:
    return {
        "spleeter": _written(_shrunk(SPLEETER), torch.float32),
        "jansson2017": _written(_shrunk(JANSSON2017), torch.float16),
        "bfloat16": _written(_shrunk(JANSSON2017), torch.bfloat16),
    }


def _shrunk(config: ModelConfig) -> ModelConfig:
    unet = dataclasses.replace(config.unet, channels=(1,), input_channels=1, dropout_blocks=1)
    spectrogram = dataclasses.replace(config.spectrogram, bins=8)
    return dataclasses.replace(config, stems=("vocals",), unet=unet, patch_frames=8, spectrogram=spectrogram)


def _written(config: ModelConfig, dtype: torch.dtype) -> bytes:
    network = UNet(config.unet).to(dtype)
    for value in network.state_dict().values():
        value.fill_(0.5)
    path = WRITTEN.folder / "seed.safetensors"
    save_checkpoint(path, config, {"vocals": network.state_dict()}, INFO)
    return path.read_bytes()


def mutate(data: bytes, random: Random) -> bytes:
    return spoilt_safetensors(data, random, KEY)


def spoilt_safetensors(data: bytes, random: Random, key: str) -> bytes:
    """Spoils bytes, or weights, or the table of tensors, or the document under `key`; the header's length fits."""
    how = random.random()
    length = int.from_bytes(data[:8], "little")
    if how < 0.1:
        weights = data[8 + length :]
        return data[: 8 + length] + spoilt(weights, random)[: len(weights)].ljust(len(weights), b"?")
    try:
        header: Any = json.loads(data[8 : 8 + length])
        if how < 0.2:
            return spoilt(data, random, head=8 + length)
        if how < 0.6:
            header["__metadata__"][key] = _document(json.loads(header["__metadata__"][key]), random)
        else:
            header = spoilt_json(header, random)
    except (ValueError, KeyError, TypeError, RecursionError):
        return spoilt(data, random)
    text = dumped(header)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _document(document: Any, random: Random) -> str:
    return dumped(spoilt_json(document, random)).decode()


TARGET = Target(
    run=target,
    documented=(CheckpointError,),
    seeds=seeds,
    mutate=mutate,
    # The table of 1 MiB at most becomes objects; the networks of any configuration are described, never made, before
    # the weights are known to be there.
    limits=Limits(memory_bytes=32 * 2**20, memory_per_byte=1024, cpu_s=10.0, max_bytes=8192),
)
