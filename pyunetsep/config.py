"""Frozen configurations, units in their names, and the two published models' values.

`ModelConfig` is what a checkpoint holds: everything that training fixed. `SeparatorConfig` is how inference runs and
may be chosen anew for every call. A configuration read from a file goes through `from_dict`, a closed schema:
unknown keys, missing keys, wrong types and values out of bounds are errors, so that a hostile file cannot ask for
gigabytes.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")


class Checked:
    """A dataclass whose values are of their annotated types, however it is made."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = _typed(hint, getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, value)  # a list has become a tuple, an int a float


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    """The annotated types of a dataclass's fields; kept, for to find them takes longer than to check all values."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


def check_bounds(owner: object, field: str, low: float, high: float) -> None:
    """A ValueError that names the class and the field, unless low <= value <= high."""
    value = getattr(owner, field)
    if not low <= value <= high:  # also catches NaN
        raise ValueError(f"{type(owner).__name__}.{field} must lie in {low:g} .. {high:g}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types; `from_dict` is the inverse."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(kind: type[Config], values: object, *, where: str = "") -> Config:
    """Builds the frozen dataclass `kind` from plain JSON types.

    Raises:
        ValueError: a key is unknown or missing, a value has another type or is out of bounds; the message names it.
    """
    where = where or kind.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a table, got {shown(values)}")
    hints = _hints(kind)
    unknown = sorted(shown(key) for key in values if key not in hints)
    missing = [key for key in hints if key not in values]
    if unknown or missing:
        raise ValueError(
            f"{where}: "
            + "; ".join(
                f"{problem} {', '.join(keys)[:200]}"
                for problem, keys in (("unknown", unknown), ("missing", missing))
                if keys
            )
        )
    return kind(**{key: _typed(hint, values[key], f"{where}.{key}") for key, hint in hints.items()})


def _typed(hint: Any, value: object, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ValueError."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):  # "int | None"
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        return from_dict(typing.cast(type, hint), value, where=where)
    if origin is Literal:
        if isinstance(value, str) and value in typing.get_args(hint):
            return value
        raise ValueError(f"{where} must be one of {', '.join(typing.get_args(hint))}; got {shown(value)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) <= 64:
            return tuple(_typed(typing.get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        raise ValueError(f"{where} must be a list, got {shown(value)}")
    if isinstance(value, bool) is (hint is bool):  # to Python a bool is an int
        # neither NaN nor infinite, nor an integer that no float can hold
        if hint is float and isinstance(value, (int, float)) and abs(value) <= sys.float_info.max:
            return float(value)
        if hint in (int, str, bool) and isinstance(value, hint):
            return value
    raise ValueError(f"{where} must be a {hint.__name__}, got {shown(value)}")


def shown(value: object) -> str:
    """A value from a file as it may stand in a message: quoted, and short."""
    try:
        text = repr(value)
    except RecursionError:  # what could just be read may be too deep to be written
        return f"a {type(value).__name__} that is nested too deep"
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True, kw_only=True)
class SpectrogramConfig(Checked):
    """The short-time Fourier transform and the band of it that the network sees.

    The window is a periodic Hann of `n_fft` samples. Frames are not centred: frame k starts `n_fft` samples before
    sample `k * hop_length` of the signal, so that every sample lies in as many frames as every other.
    """

    sample_rate_hz: int
    n_fft: int
    hop_length: int
    first_bin: int  # 0 keeps DC; 1 drops it
    bins: int  # the network sees bins first_bin .. first_bin + bins - 1 of the n_fft // 2 + 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "sample_rate_hz", 1_000, 768_000)
        check_bounds(self, "n_fft", 16, 65_536)
        check_bounds(self, "hop_length", 1, self.n_fft)
        check_bounds(self, "first_bin", 0, self.n_fft // 2)
        check_bounds(self, "bins", 1, self.n_fft // 2 + 1 - self.first_bin)
        if self.n_fft % 2:
            raise ValueError(f"SpectrogramConfig.n_fft must be even, got {self.n_fft}")


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Checked):
    """The shape of one U-Net: encoder and decoder blocks, how they are joined, and what ends them."""

    input_channels: int
    channels: tuple[int, ...]  # one encoder block each; the decoder mirrors them
    decoder_order: Literal["norm-activation", "activation-norm"]
    alignment: Literal["pytorch", "tensorflow"]  # zeros before a stride-2 convolution's input: 2, or 1
    skips: Literal["activated", "raw"]  # raw: the convolution's output, before norm and activation
    head: Literal["transposed", "dilated"]  # what makes the mask: the last decoder block, or a dilated 4x4 after it
    upsampling: Literal["transposed", "nearest"]  # nearest: repeat, then an ordinary convolution
    dropout: float
    dropout_blocks: int  # the first so many decoder blocks drop elements while training
    leaky_slope: float
    norm_epsilon: float
    norm_momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "input_channels", 1, 64)
        if not 1 <= len(self.channels) <= 10 or not all(1 <= channels <= 4096 for channels in self.channels):
            raise ValueError(f"UNetConfig.channels must be 1 to 10 numbers from 1 to 4096, got {self.channels!r}")
        check_bounds(self, "dropout", 0.0, 0.99)
        check_bounds(self, "dropout_blocks", 0, len(self.channels))
        check_bounds(self, "leaky_slope", 0.0, 1.0)
        check_bounds(self, "norm_epsilon", 1e-12, 1.0)
        check_bounds(self, "norm_momentum", 0.0, 1.0)

    @property
    def stride(self) -> int:
        """Bins and frames of the input must be multiples of this."""
        return 2 ** len(self.channels)

    @property
    def trained(self) -> UNetConfig:
        """The same less what makes no difference to a network once it is trained."""
        return dataclasses.replace(self, dropout=0.0, dropout_blocks=0, norm_momentum=0.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A trained model: one U-Net a stem, and the spectrogram they were trained on."""

    stems: tuple[str, ...]
    spectrogram: SpectrogramConfig
    unet: UNetConfig
    patch_frames: int
    normalisation: Literal["none", "patch", "song"]  # what magnitudes are divided by: nothing, or the maximum of these
    masks: Literal["ratio", "soft"]  # its authors' masks: ratios of the stems' magnitudes, or the networks' own output
    mask_power: float  # exponent of the magnitudes in the ratio
    mask_epsilon: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.stems) <= 16 or len(set(self.stems)) != len(self.stems):
            raise ValueError(f"ModelConfig.stems must be 1 to 16 different names, got {self.stems!r}")
        for stem in self.stems:
            # stems name files and tensors
            if not (stem.isidentifier() and stem.isascii() and len(stem) <= 64):
                raise ValueError(f"ModelConfig.stems must be plain words, got {stem!r}")
        check_bounds(self, "patch_frames", self.unet.stride, 65_536)
        for name, size in (("patch_frames", self.patch_frames), ("spectrogram.bins", self.spectrogram.bins)):
            if size % self.unet.stride:
                raise ValueError(f"ModelConfig.{name} must be a multiple of {self.unet.stride}, got {size}")
        if self.patch_frames * self.spectrogram.bins * self.unet.input_channels > 2**24:
            raise ValueError("ModelConfig: a patch of more than 2**24 magnitudes is not supported")
        check_bounds(self, "mask_power", 0.1, 10.0)
        check_bounds(self, "mask_epsilon", 1e-30, 1.0)

    def chosen_stems(self, stem: str | Sequence[str] | None) -> list[str]:
        """The stems that a caller means by one name, several, or None for all, in the model's order.

        Raises:
            ValueError: one that the model has not, or none.
        """
        names = list(self.stems) if stem is None else [stem] if isinstance(stem, str) else list(stem)
        if not names or any(name not in self.stems for name in names):
            raise ValueError(f"stem must be of {', '.join(self.stems)}; got {stem!r}")
        return [name for name in self.stems if name in names]


@dataclass(frozen=True, kw_only=True)
class SeparatorConfig(Checked):
    """How inference runs. The defaults aim at quality; `EXACT` reproduces the pipeline of the model's own authors."""

    overlap: float = 0.25  # share of a patch that is cross-faded with the next one
    grids: int | None = None  # frame grids, shifted by hop / grids each; None: as many as an even resynthesis needs
    additive: bool = True  # ratio masks, and the last stem is the mixture less the others: the sum is the mixture
    # The mask above the network's band: none, or in each frame the mean of the masks of the whole band, or of its upper
    # 4 kHz.
    mask_extension: Literal["zeros", "average", "upper"] = "upper"
    # The masks of a song of several channels whose networks take one: one of its own for each, which keeps apart what
    # is panned, or one for all, from the middle (their mean), which takes the networks half the work in stereo.
    # Networks that take more channels than one hear them together, and make no use of it.
    stereo_masks: Literal["each", "mid"] = "each"
    # Patches that go through a network at once; None: by their size, up to 128 on a GPU and 4 on a CPU. A GPU that has
    # not the memory gets fewer.
    batch_patches: int | None = None
    precision: Literal["float32", "float16", "bfloat16"] | None = None  # of the networks; None: float16 on a GPU

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "overlap", 0.0, 0.5)
        if self.grids is not None:
            check_bounds(self, "grids", 1, 64)
        if self.batch_patches is not None:
            check_bounds(self, "batch_patches", 1, 1024)


EXACT = SeparatorConfig(overlap=0.0, grids=1, additive=False, mask_extension="zeros", precision="float32")

JANSSON2017 = ModelConfig(  # Jansson et al., ISMIR 2017
    stems=("vocals", "accompaniment"),
    spectrogram=SpectrogramConfig(sample_rate_hz=8192, n_fft=1024, hop_length=768, first_bin=0, bins=512),
    unet=UNetConfig(
        input_channels=1,
        channels=(16, 32, 64, 128, 256, 512),
        decoder_order="norm-activation",
        alignment="pytorch",
        skips="activated",
        head="transposed",
        upsampling="transposed",
        dropout=0.5,
        dropout_blocks=3,
        leaky_slope=0.2,
        norm_epsilon=1e-5,
        norm_momentum=0.1,
    ),
    patch_frames=128,
    normalisation="patch",
    masks="soft",
    mask_power=1.0,
    mask_epsilon=1e-10,
)

SPLEETER = ModelConfig(  # Hennequin et al., JOSS 2020; configuration "2stems"
    stems=("vocals", "accompaniment"),
    spectrogram=SpectrogramConfig(sample_rate_hz=44_100, n_fft=4096, hop_length=1024, first_bin=0, bins=1024),
    unet=UNetConfig(
        input_channels=2,
        channels=(16, 32, 64, 128, 256, 512),
        decoder_order="activation-norm",
        alignment="tensorflow",
        skips="raw",
        head="dilated",
        upsampling="transposed",
        dropout=0.5,
        dropout_blocks=3,
        leaky_slope=0.2,
        norm_epsilon=1e-3,
        norm_momentum=0.01,
    ),
    patch_frames=512,
    normalisation="none",
    masks="ratio",
    mask_power=2.0,
    mask_epsilon=1e-10,
)

PRESETS = {"jansson2017": JANSSON2017, "spleeter": SPLEETER}
