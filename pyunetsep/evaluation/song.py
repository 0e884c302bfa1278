"""A song with known stems, and what scoring does to it: mixing, levelling, cutting, another rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..audio import Resampler, Wave

LEAST_PIECE_S = 1.0  # a shorter rest at a song's end is not scored
SILENCE = 1e-6  # of the mixture's energy (-60 dB): a stem with less is what a codec or a microphone left of silence


def energy(wave: Wave, less: Wave | None = None) -> float:
    """The sum of squares of a wave, or of its difference from another, over samples and channels, in float64."""
    total = 0.0
    for i, channel in enumerate(wave):  # one at a time: a song may be long
        samples = channel.astype(np.float64)
        if less is not None:
            samples -= less[i]
        total += float(np.dot(samples, samples))
    return total


def resampled(wave: Wave, from_hz: int, to_hz: int) -> Wave:
    """[channels, n] -> [channels, ceil(n * to_hz / from_hz)], float64."""
    resampler = Resampler(from_hz, to_hz, wave.shape[0], np.float64)
    return np.concatenate((resampler.push(wave), resampler.flush()), axis=1)


def mono(wave: Wave) -> Wave:
    """[channels, samples] -> [1, samples], the channels' mean, float64."""
    return wave.mean(0, keepdims=True, dtype=np.float64)


@dataclass(frozen=True)
class Song:
    """Vocals and accompaniment, [channels, samples] each, alike in shape; the mixture is their sum."""

    stems: Mapping[str, Wave]
    sample_rate_hz: int

    @cached_property
    def mixture(self) -> Wave:
        vocals, accompaniment = self.stems.values()
        return vocals + accompaniment

    @property
    def channels(self) -> int:
        return int(self.mixture.shape[0])

    @property
    def samples(self) -> int:
        return int(self.mixture.shape[1])

    @property
    def duration_s(self) -> float:
        return self.samples / self.sample_rate_hz

    @cached_property
    def silent_stems(self) -> tuple[str, ...]:
        least = SILENCE * energy(self.mixture)
        return tuple(stem for stem, wave in self.stems.items() if energy(wave) <= least)

    def levelled(self) -> Song:
        """The song mixed at 0 dB: both stems get half of their summed energy. None may be silent.

        At the song's rate, as MIR-1K's clips are mixed in the literature; with the sum kept, so that a model that
        minds the level meets one it knows.
        """
        energies = {stem: energy(wave) for stem, wave in self.stems.items()}
        half = sum(energies.values()) / 2
        gained = {stem: (wave * np.sqrt(half / energies[stem])).astype(wave.dtype) for stem, wave in self.stems.items()}
        return Song(gained, self.sample_rate_hz)

    def mono_at(self, sample_rate_hz: int) -> Song:
        stems = {stem: resampled(mono(wave), self.sample_rate_hz, sample_rate_hz) for stem, wave in self.stems.items()}
        return Song(stems, sample_rate_hz)

    def part(self, where: slice) -> Song:
        return Song({stem: wave[:, where] for stem, wave in self.stems.items()}, self.sample_rate_hz)


def piece_slices(samples: int, sample_rate_hz: int, piece_s: float) -> Iterator[slice]:
    """A song's pieces of `piece_s` seconds, one after the other; the last one is shorter, or left out below 1 s."""
    size = max(1, round(piece_s * sample_rate_hz))
    for start in range(0, samples, size):
        stop = min(start + size, samples)
        if stop - start == size or stop - start >= LEAST_PIECE_S * sample_rate_hz:
            yield slice(start, stop)
