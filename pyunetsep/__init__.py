"""pyunetsep separates the singing voice of a song from its accompaniment.

    stems = pyunetsep.separate(audio, sample_rate)      # stems["vocals"], stems["accompaniment"]

The public names below are imported when first used, so that `import pyunetsep` and the command line's help are
instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import (
    AudioFileError,
    AudioFormatError,
    Cancelled,
    CheckpointError,
    ClippingWarning,
    DataError,
    DeviceError,
    InvalidAudioError,
    ModelUnavailableError,
    OutputExistsError,
    PyunetsepError,
    TrainingError,
    TruncatedAudioError,
    UnknownModelError,
)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import PRESETS, ModelConfig, SeparatorConfig, SpectrogramConfig, UNetConfig
    from .cuda_plan import CudaPlan
    from .export import export_onnx
    from .separator import Separator, separate
    from .song_files import FileResult
    from .song_stream import SongStream
    from .training.config import AugmentationConfig, TrainingConfig
    from .training.run import train
    from .unet import UNet
    from .unet_plan import UNetPlan

_HOME = {
    "separate": "separator",
    "Separator": "separator",
    "FileResult": "song_files",
    "SongStream": "song_stream",
    "UNet": "unet",
    "UNetPlan": "unet_plan",
    "CudaPlan": "cuda_plan",
    "UNetConfig": "config",
    "SpectrogramConfig": "config",
    "ModelConfig": "config",
    "PRESETS": "config",
    "SeparatorConfig": "config",
    "train": "training.run",
    "TrainingConfig": "training.config",
    "AugmentationConfig": "training.config",
    "export_onnx": "export",
}

__all__ = [
    "PRESETS",
    "CudaPlan",
    "FileResult",
    "ModelConfig",
    "Separator",
    "SeparatorConfig",
    "SongStream",
    "SpectrogramConfig",
    "UNet",
    "UNetConfig",
    "AugmentationConfig",
    "TrainingConfig",
    "UNetPlan",
    "separate",
    "train",
    "export_onnx",
    "AudioFileError",
    "AudioFormatError",
    "Cancelled",
    "CheckpointError",
    "ClippingWarning",
    "DataError",
    "DeviceError",
    "InvalidAudioError",
    "ModelUnavailableError",
    "OutputExistsError",
    "PyunetsepError",
    "TrainingError",
    "TruncatedAudioError",
    "UnknownModelError",
]


if not TYPE_CHECKING:  # or every name there is none of would pass for an object

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
