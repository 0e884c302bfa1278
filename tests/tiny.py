"""Models of both families, small enough to run in milliseconds, with random weights."""

import dataclasses
from pathlib import Path

import torch

from pyunetsep.checkpoint import Checkpoint, ModelInfo, save_checkpoint
from pyunetsep.config import JANSSON2017, SPLEETER, ModelConfig
from pyunetsep.unet import UNet

UNET = {"channels": (3, 4), "dropout_blocks": 1}
INFO = ModelInfo(name="tiny", licence="MIT", training_data="none", source="random weights", source_sha256="")

SPLEETER_LIKE = dataclasses.replace(
    SPLEETER,
    spectrogram=dataclasses.replace(SPLEETER.spectrogram, sample_rate_hz=8000, n_fft=128, hop_length=32, bins=32),
    unet=dataclasses.replace(SPLEETER.unet, **UNET),
    patch_frames=64,
)
JANSSON_LIKE = dataclasses.replace(
    JANSSON2017,
    spectrogram=dataclasses.replace(JANSSON2017.spectrogram, sample_rate_hz=4000, n_fft=128, hop_length=96, bins=64),
    unet=dataclasses.replace(JANSSON2017.unet, **UNET),
    patch_frames=32,
)


def checkpoint(config: ModelConfig = SPLEETER_LIKE) -> Checkpoint:
    torch.manual_seed(1)
    networks = {}
    for stem in config.stems:
        network = UNet(config.unet)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        networks[stem] = network.eval().requires_grad_(False)
    return Checkpoint(config, INFO, networks)


def write_model(path: Path, config: ModelConfig = SPLEETER_LIKE) -> Path:
    """`checkpoint` as a file."""
    tiny = checkpoint(config)
    save_checkpoint(path, config, {stem: network.state_dict() for stem, network in tiny.networks.items()}, tiny.info)
    return path


def noise(channels: int, samples: int, seed: int = 0) -> torch.Tensor:
    """A wave that wanders in level and colour, peak about 0.5."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.randn(channels, samples, generator=generator) * 0.1
    swell = 0.6 + 0.4 * torch.sin(torch.arange(samples) / 700.0)
    return (wave * swell).clamp(-0.5, 0.5)
