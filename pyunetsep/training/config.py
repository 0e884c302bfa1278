"""What a training run is made of: a frozen configuration, from defaults, a TOML file and flags."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..config import PRESETS, Checked, ModelConfig, check_bounds, from_dict, shown, to_dict
from ..errors import PyunetsepError


def _option(default: Any, text: str) -> Any:
    """A field with its default, and what the command line's help says of it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Checked):
    """How recordings become examples. Shares are probabilities, drawn for each example and stem."""

    remix: float = _option(0.5, "share of examples whose vocals and accompaniment are from different recordings")
    gain_db: float = _option(8.0, "the vocals' level over the accompaniment's lies between minus and plus this")
    speed: float = _option(0.15, "largest relative change of speed and pitch, by resampling")
    speed_share: float = _option(0.5, "share of examples whose speed is changed")
    equaliser_db: float = _option(3.0, "largest amplitude of each of three waves of a random equaliser")
    equaliser_share: float = _option(0.5, "share of stems that are equalised")
    drive_share: float = _option(0.05, "share of stems that are softly clipped")
    reverb_share: float = _option(0.15, "share of vocals that are put into a room")
    swap_share: float = _option(0.5, "share of examples whose left and right are exchanged")
    silence_share: float = _option(0.03, "share of examples without vocals, and as many without accompaniment")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("remix", "speed_share", "equaliser_share", "drive_share", "reverb_share", "swap_share"):
            check_bounds(self, name, 0.0, 1.0)
        check_bounds(self, "gain_db", 0.0, 40.0)
        check_bounds(self, "speed", 0.0, 0.5)
        check_bounds(self, "equaliser_db", 0.0, 20.0)
        check_bounds(self, "silence_share", 0.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """One run: what is trained, on what, and how."""

    preset: str = _option("jansson2017", f"architecture and transform: {', '.join(PRESETS)}")
    stems: tuple[str, ...] = _option((), "networks to train side by side (default: all of the preset's)")
    channels: tuple[int, ...] = _option((), "of the encoder blocks, for smaller networks (default: the preset's)")
    data: tuple[str, ...] = _option((), "folders of stems, MUSDB18 folders, or CSV manifests")
    licence: Literal["any", "permissive"] = _option("any", "permissive: only data that allows commercial use")
    validation: tuple[str, ...] = _option((), "songs or singers held out for validation (names or patterns)")
    test: tuple[str, ...] = _option((), "songs or singers held out altogether (names or patterns)")

    steps: int = _option(20_000, "optimiser steps")
    batch: int = _option(16, "examples a step, over all processes")
    loss: Literal["magnitude", "complex"] = _option("magnitude", "of magnitudes (the paper's) or of complex spectra")
    learning_rate: float = _option(1e-3, "at its largest; a cosine takes it down to a hundredth")
    warmup_steps: int = _option(100, "steps over which the learning rate rises")
    weight_decay: float = _option(0.0, "AdamW's; 0 is Adam")
    clip_norm: float = _option(0.0, "largest norm of a network's gradient; 0 leaves it alone")
    dropout: float = _option(0.5, "share of elements that the decoder's first blocks drop (the paper's: 0.5)")
    average_decay: float = _option(0.999, "of the moving average of the weights, which is what is validated and saved")
    precision: Literal["float32", "bfloat16", "float16"] = _option("float32", "of the convolutions; float16 on a GPU")
    compile: bool = _option(False, "compile the networks with torch.compile")
    init: str = _option("", "model to start from: a name or a file")
    init_by: Literal["weights", "transfer", "complement"] = _option(
        "weights",
        "how to start from that model: with its weights; from Spleeter's variant, as far as weights correspond; or "
        "with the other stem's network, its mask turned round",
    )
    freeze_all_but: int = _option(0, "train only the last so many blocks; 0 trains all")
    seed: int = _option(0, "of weights, examples and dropout")

    validate_every: int = _option(500, "steps between validations")
    save_every: int = _option(250, "steps between checkpoints")
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ValueError(f"TrainingConfig.preset must be one of {', '.join(PRESETS)}; got {shown(self.preset)}")
        unknown = [stem for stem in self.stems if stem not in PRESETS[self.preset].stems]
        if unknown or len(set(self.stems)) != len(self.stems):
            raise ValueError(
                f"TrainingConfig.stems must be of {', '.join(PRESETS[self.preset].stems)}; got {shown(self.stems)}"
            )
        _ = self.model  # its own checks
        if self.init_by != "weights" and not self.init:
            raise ValueError(
                f"TrainingConfig.init_by {self.init_by!r} needs a model to start from, TrainingConfig.init"
            )
        check_bounds(self, "steps", 1, 10**9)
        check_bounds(self, "batch", 1, 4096)
        check_bounds(self, "learning_rate", 1e-9, 1.0)
        check_bounds(self, "warmup_steps", 0, 10**6)
        check_bounds(self, "weight_decay", 0.0, 1.0)
        check_bounds(self, "clip_norm", 0.0, 1e6)
        check_bounds(self, "average_decay", 0.0, 0.999999)
        check_bounds(self, "freeze_all_but", 0, 64)
        check_bounds(self, "seed", 0, 2**31 - 1)
        check_bounds(self, "validate_every", 1, 10**9)
        check_bounds(self, "save_every", 1, 10**9)

    @property
    def model(self) -> ModelConfig:
        """The preset, with the stems that are trained and the channels that were asked for."""
        preset = PRESETS[self.preset]
        channels = self.channels or preset.unet.channels
        blocks = min(preset.unet.dropout_blocks, len(channels))
        unet = dataclasses.replace(preset.unet, channels=channels, dropout=self.dropout, dropout_blocks=blocks)
        return dataclasses.replace(preset, stems=self.stems or preset.stems, unet=unet)


def merged(*layers: Mapping[str, Any]) -> TrainingConfig:
    """The defaults, overridden by one layer of plain values after the other.

    Raises:
        ValueError: a key is unknown, or a value of the wrong type or out of bounds.
    """
    values = to_dict(TrainingConfig())
    for layer in layers:
        augmentation = layer.get("augmentation", {})
        if not isinstance(augmentation, Mapping):
            raise ValueError(f"augmentation must be a table, got {shown(augmentation)}")
        values = {**values, **layer, "augmentation": {**values["augmentation"], **augmentation}}
    return from_dict(TrainingConfig, values)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a configuration file; relative paths are relative to the file.

    Raises:
        OSError: it cannot be read. ValueError: it is not TOML, or has a key or value that no configuration has.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    file = Path(os.path.expanduser(path))
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        merged(values)
    except PyunetsepError:
        raise
    except RecursionError:
        raise ValueError(f"{file}: is nested too deep") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError among them
        raise ValueError(f"{file}: {error}") from None
    beside = file.parent.absolute()

    def located(path: str) -> str:
        return os.fspath(beside / os.path.expanduser(path))

    if "data" in values:
        values["data"] = [located(folder) for folder in values["data"]]
    if (init := values.get("init")) and os.path.exists(located(init)):
        values["init"] = located(init)
    return values


def to_toml(config: TrainingConfig) -> str:
    """The configuration as a file that `read_toml` reads."""

    def lines(values: Mapping[str, Any]) -> list[str]:
        return [f"{key} = {written(value)}" for key, value in values.items() if not isinstance(value, Mapping)]

    def written(value: Any) -> str:
        # JSON's numbers, booleans, strings and lists are TOML's as well, but that TOML escapes DEL, and knows no pairs
        # of surrogates; a lone one, of a file name that is no Unicode, it cannot hold
        text = json.dumps(value, ensure_ascii=False)
        return re.sub("[\x7f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)

    values = to_dict(config)
    return "\n".join([*lines(values), "", "[augmentation]", *lines(values["augmentation"]), ""])
