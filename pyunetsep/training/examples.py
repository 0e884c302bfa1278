"""Recordings in, batches of spectra out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..data import STEMS, Recording
from ..spectrogram import Spectrogram
from ..transfers import sent
from . import augmentation
from .config import TrainingConfig
from .sampling import Draw, Sampler

BLOCK = 1 << 20
GPU_SHARE = 0.4  # of a GPU's free memory that the recordings may take


@dataclass(frozen=True)
class Batch:
    """Examples as the networks and losses see them, in the network's band, loudest magnitude of a patch 1 if the model
    is normalised so."""

    magnitude: Tensor  # of the mixture, [batch, channels, bins, frames]: the networks' input
    magnitudes: dict[str, Tensor]  # of the stems, as the mixture's
    spectra: dict[str, Tensor]  # of the stems, complex, as they were before ...
    loudest: Tensor | None  # ... they were divided by this, [batch, 1, 1, 1]
    draws: list[Draw]

    @cached_property
    def stems(self) -> dict[str, Tensor]:
        """The stems' spectra."""
        if self.loudest is None:
            return self.spectra
        return {stem: spectrum / self.loudest for stem, spectrum in self.spectra.items()}

    @cached_property
    def mixture(self) -> Tensor:
        """The mixture's spectrum."""
        return self.stems["vocals"] + self.stems["accompaniment"]


class Examples:
    """Makes any example of a run at any time; see `Sampler`."""

    def __init__(self, recordings: Sequence[Recording], config: TrainingConfig, device: torch.device) -> None:
        self.config, self.model, self.device = config, config.model, device
        self.recordings = recordings
        self.sampler = Sampler(recordings, config)
        self.spectrogram = Spectrogram(self.model.spectrogram, device=device)
        self.samples = self.spectrogram.span(self.model.patch_frames)
        self.levels: dict[tuple[int, str], float] = {}
        home = device if _fit(recordings, device) else torch.device("cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they cannot be written to: nobody does
            self.waves = [
                {stem: torch.from_numpy(wave).to(home) for stem, wave in recording.waves.items()}
                for recording in recordings
            ]

    def batch(self, step: int, indices: Sequence[int]) -> Batch:
        """The examples `indices` of a step."""
        draws = [self.sampler.draw(step, index) for index in indices]
        band = slice(self.model.spectrogram.first_bin, self.model.spectrogram.first_bin + self.model.spectrogram.bins)
        spectra, magnitudes = {}, {}
        for stem in STEMS:
            spectrum, of_band = self.spectrogram.analyse(self._waves(draws, stem))
            curves = augmentation.equalisers(draws, stem, band.start, self.model.spectrogram.bins, spectrum.real)
            spectra[stem] = (spectrum[..., band] * curves).mT
            magnitudes[stem] = (of_band * curves).mT.contiguous()
        magnitude, loudest = (spectra["vocals"] + spectra["accompaniment"]).abs().contiguous(), None
        if self.model.normalisation != "none":
            loudest = magnitude.amax((1, 2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            magnitude = magnitude / loudest
            magnitudes = {stem: of_stem / loudest for stem, of_stem in magnitudes.items()}
        return Batch(magnitude, magnitudes, spectra, loudest, draws)

    def _waves(self, draws: Sequence[Draw], stem: str) -> Tensor:
        """The stem's waves as they enter the mixtures: [batch, channels, samples]."""
        chosen = [draw.stems[stem] for draw in draws]
        waves = torch.zeros(len(draws), self.model.unet.input_channels, self.samples, device=self.device)
        for wave, draw in zip(waves, chosen, strict=True):
            source = self.waves[draw.recording][stem]
            needed = augmentation.samples_needed(self.samples, draw.speed)
            spare = source.shape[1] - needed
            start = abs(_start(spare, draw.position))
            part = source[:, start : start + needed] if spare > 0 else source
            part = sent(part, self.device).float()
            if spare < 0:
                part = torch.nn.functional.pad(part, (start, -spare - start))
            wave.copy_(augmentation.change_speed(part, draw.speed, self.samples))
            if draw.swapped:
                wave.copy_(wave.flip(0))
        augmentation.add_rooms(waves, chosen, [draw.noise for draw in draws], self.model.spectrogram.sample_rate_hz)
        waves = augmentation.level(waves, [self._usual_level(draw.recording, stem) for draw in chosen])
        augmentation.clip_softly(waves, chosen)
        return waves * augmentation.gains(chosen, waves)

    def _usual_level(self, recording: int, stem: str) -> float:
        """The root mean square of a whole recording; measured when it is first drawn."""
        key = recording, stem
        if key not in self.levels:
            wave = self.recordings[recording].waves[stem]
            blocks = range(0, wave.shape[1], BLOCK)
            energy = sum(float(np.square(wave[:, at : at + BLOCK], dtype=np.float64).sum()) for at in blocks)
            self.levels[key] = math.sqrt(energy / wave.size)
        return self.levels[key]

    def describe(self, draw: Draw) -> str:
        """Where an example comes from."""
        parts = []
        for stem, source in draw.stems.items():
            recording = self.recordings[source.recording]
            spare = recording.samples - augmentation.samples_needed(self.samples, source.speed)
            start_s = max(0, _start(spare, source.position)) / recording.sample_rate_hz
            parts.append(f"{stem} of {recording.track.name} at {start_s:.1f} s")
        return ", ".join(parts)


def _start(spare: int, position: float) -> int:
    """Where a recording with so many samples to spare is entered; below 0, the silence before one that is too short."""
    start = int(position * (abs(spare) + 1))
    return start if spare >= 0 else -start


def _fit(recordings: Sequence[Recording], device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    size = sum(wave.nbytes for recording in recordings for wave in recording.waves.values())
    return size < GPU_SHARE * torch.cuda.mem_get_info(device)[0]
