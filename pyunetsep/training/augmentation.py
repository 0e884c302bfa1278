"""What is done to the waves of a batch, on the device that trains: speed, rooms, soft clipping, levels, equalisers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..transfers import sent
from .sampling import EQUALISER_WAVES, REVERB_S, Draw, StemDraw

MEAN_LEVEL = 0.1  # root mean square that stems are brought to, before their gains
SOFTEST = 0.1  # of its recording's mean level: what is softer, a pause say, is not brought up further
TAPS = 4


def samples_needed(samples: int, speed: float) -> int:
    """Of a recording, for so many samples at a speed."""
    return math.ceil(samples * speed) + TAPS


def change_speed(wave: Tensor, speed: float, samples: int) -> Tensor:
    """Plays a wave [channels, samples_needed(samples, speed)] so much faster: [channels, samples].

    Cubic interpolation (Catmull-Rom): treble is damped a little, and what passes half the sample rate folds back
    softly; the mixture is made of what comes out, so both stay true to each other.
    """
    if speed == 1.0:
        return wave[:, :samples]
    position = torch.arange(samples, device=wave.device, dtype=torch.float64) * speed
    whole = position.long()
    t = (position - whole).to(wave.dtype)
    before, here, after, beyond = (wave[:, tap:].index_select(1, whole) for tap in range(TAPS))
    return here + 0.5 * t * (
        after - before + t * (2 * before - 5 * here + 4 * after - beyond + t * (3 * (here - after) + beyond - before))
    )


def add_rooms(waves: Tensor, stems: Sequence[StemDraw], noises: Sequence[np.random.Generator], rate_hz: int) -> None:
    """Puts waves [batch, channels, samples] into rooms, in place: white noise that decays exponentially."""
    samples = waves.shape[-1]
    length = round(REVERB_S[1] * rate_hz)
    size = 1 << (samples + length - 1).bit_length()
    for wave, stem, noise in zip(waves, stems, noises, strict=True):  # alone: a transform of many rounds otherwise
        if stem.reverb_gain > 0:
            decay = np.exp(-math.log(1000.0) / (stem.reverb_s * rate_hz) * np.arange(length))
            room = noise.standard_normal(length, np.float32) * decay
            room *= math.sqrt(stem.reverb_gain / np.sum(room**2))
            room[0] += 1.0
            response = torch.fft.rfft(sent(torch.from_numpy(room).to(wave.dtype), wave.device), size)
            wave.copy_(torch.fft.irfft(torch.fft.rfft(wave, size) * response, size)[..., :samples])


def clip_softly(waves: Tensor, stems: Sequence[StemDraw]) -> None:
    """tanh, in place, of waves [batch, channels, samples] that were brought to `MEAN_LEVEL`."""
    for i, stem in enumerate(stems):
        if stem.drive > 0:
            waves[i] = torch.tanh(waves[i] * stem.drive) / stem.drive


def level(waves: Tensor, usual: Sequence[float]) -> Tensor:
    """Brings waves [batch, channels, samples] to the mean level; `usual` is that of their recordings."""
    # one by one: how a sum over many is split up, and so rounded, depends on how many there are
    mean = torch.stack([wave.square().mean() for wave in waves]).sqrt()
    softest = sent(SOFTEST * torch.tensor(usual, dtype=mean.dtype), mean.device)
    return waves * (MEAN_LEVEL / mean.maximum(softest))[:, None, None]


def gains(stems: Sequence[StemDraw], like: Tensor) -> Tensor:
    """The stems' factors: [batch, 1, 1]."""
    factors = [0.0 if stem.silent else 10 ** (stem.gain_db / 20) for stem in stems]
    return sent(torch.tensor(factors, dtype=like.dtype), like.device)[:, None, None]


def equalisers(draws: Sequence[Draw], stem: str, first_bin: int, bins: int, like: Tensor) -> Tensor:
    """Random equalisers as gains of bins, [batch, 1, 1, bins]: some waves over the logarithm of the frequency."""
    octaves = np.log2(np.arange(first_bin, first_bin + bins) + 8.0)  # the lowest bins lie together
    place = (octaves - octaves[0]) / (octaves[-1] - octaves[0])
    waves = np.cos(np.pi * np.outer(np.arange(1, EQUALISER_WAVES + 1), place))
    amplitudes_db = np.array([draw.stems[stem].equaliser_db for draw in draws])
    curves = 10 ** ((amplitudes_db[:, :, None] * waves).sum(1) / 20)
    return sent(torch.from_numpy(curves).to(like.dtype), like.device)[:, None, None, :]
