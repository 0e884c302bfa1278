"""Array <-> waves. Layout follows type, never shape; what comes out is what went in: type, dtype, shape, device.

Waves of an array are arrays, those of a tensor tensors, where it is.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch

from .audio import Wave
from .errors import ClippingWarning, InvalidAudioError

MAX_CHANNELS = 64
SCALES = {"int16": 2.0**15, "int32": 2.0**31}  # full scale
FLOATS = ("float16", "bfloat16", "float32", "float64")


class ArrayLayout:
    """Reads an array as waves and lays stems out like it.

    NumPy arrays are (samples,) or (samples, channels), as soundfile has them; torch tensors are (samples,) or
    (..., channels, samples), leading dimensions counting songs.
    """

    def __init__(self, audio: Any) -> None:
        """
        Raises:
            TypeError: not an array, or of a dtype that is no audio.
            InvalidAudioError: the shape is no song's.
        """
        if isinstance(audio, torch.Tensor) and audio.layout == torch.strided and not audio.is_meta:
            songs: Any = _tensor_songs(audio)
            self.dtype = str(audio.dtype).removeprefix("torch.")
        elif isinstance(audio, np.ndarray):
            songs = _array_songs(np.asarray(audio))
            self.dtype = audio.dtype.name
        else:
            hint = "; Separator.separate_file takes a path" if isinstance(audio, (str, os.PathLike)) else ""
            raise TypeError(f"audio must be a NumPy array or a dense torch tensor, got {type(audio).__name__}{hint}")
        if self.dtype not in (*SCALES, *FLOATS):
            raise TypeError(f"audio must be {', '.join((*SCALES, *FLOATS))}; got {self.dtype}")
        channels = songs.shape[1]
        if not 1 <= channels <= MAX_CHANNELS:
            raise InvalidAudioError(
                f"audio must have 1 to {MAX_CHANNELS} channels, got {channels} in shape {tuple(audio.shape)}"
                + (
                    "; is the array transposed? NumPy arrays are (samples, channels), torch tensors (channels, samples)"
                    if channels
                    else ""
                )
            )
        self.audio, self.shape = audio, songs.shape
        # as much precision as the samples have, and no more
        double = self.dtype in ("int32", "float64")
        self.working = torch.float64 if double else torch.float32
        self.songs: list[Wave | torch.Tensor] = []
        for song in songs:
            if isinstance(song, torch.Tensor):
                wave = song.detach().to(self.working)
            else:
                wave = song.astype(np.float64 if double else np.float32, copy=False)
            self.songs.append(wave / SCALES[self.dtype] if self.dtype in SCALES else wave)

    @property
    def kind(self) -> str:
        """What the array is, but for its sizes, in words."""
        dimensions = f"{self.audio.ndim} dimensions, {self.dtype}"
        if isinstance(self.audio, torch.Tensor):
            return f"a tensor of {dimensions} on {self.audio.device}"
        return f"a NumPy array of {dimensions}"

    @property
    def home(self) -> torch.device:
        """Where the waves are."""
        return self.audio.device if isinstance(self.audio, torch.Tensor) else torch.device("cpu")

    def stem(self, song: int) -> torch.Tensor:
        """A new wave, laid out in memory like that song."""
        wave = self.songs[song]
        return torch.empty_like(wave) if isinstance(wave, torch.Tensor) else torch.from_numpy(np.empty_like(wave))

    def restore(self, waves: list[torch.Tensor], name: str) -> Any:
        """[channels, samples] of each song -> an array like the one read, of any length.

        `name` is the stem's, for the warning.
        """
        if len(waves) == 1:
            stacked = waves[0][None]  # no copy: a song may be the largest thing in memory
        elif waves:
            stacked = torch.stack(waves)
        else:
            stacked = torch.zeros(self.shape, dtype=self.working, device=self.audio.device)
        if self.dtype in SCALES:
            stacked = self._as_integers(stacked, name)
        samples = stacked.shape[-1]
        if isinstance(self.audio, torch.Tensor):
            return stacked.contiguous().reshape(*self.audio.shape[:-1], samples).to(self.audio.dtype)
        array = stacked[0].T.numpy().astype(self.audio.dtype, copy=False)
        return np.ascontiguousarray(array.reshape(samples, *self.audio.shape[1:]))

    def _as_integers(self, waves: torch.Tensor, name: str) -> torch.Tensor:
        dtype = getattr(torch, self.dtype)
        limits = torch.iinfo(dtype)
        peak = loudest(waves)
        if peak * SCALES[self.dtype] > limits.max + 1:
            warnings.warn(
                f"{name} peaks at {peak:.4f} of full scale and was clipped; rescale=True turns all stems down together",
                ClippingWarning,
                stacklevel=4,
            )
        return (waves.double() * SCALES[self.dtype]).round_().clamp_(limits.min, limits.max).to(dtype)


def loudest(wave: torch.Tensor) -> float:
    """The largest magnitude of a sample."""
    if not wave.numel():
        return 0.0
    lowest, highest = torch.aminmax(wave)
    return float(torch.maximum(-lowest, highest))


def _tensor_songs(audio: torch.Tensor) -> torch.Tensor:
    if audio.ndim == 0:
        raise InvalidAudioError("audio must be (samples,) or (..., channels, samples), got a tensor of 0 dimensions")
    together = audio.unsqueeze(0) if audio.ndim == 1 else audio
    songs = 1
    for size in together.shape[:-2]:
        songs *= size
    return together.reshape(songs, *together.shape[-2:])


def _array_songs(audio: np.ndarray) -> np.ndarray:
    if audio.ndim not in (1, 2):
        raise InvalidAudioError(
            f"audio must be (samples,) or (samples, channels), got {audio.ndim} dimensions, shape {audio.shape}; "
            "separate several songs one by one"
        )
    return (audio[:, None] if audio.ndim == 1 else audio).T[None]
