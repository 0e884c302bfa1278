"""Stems of a wave of any sample rate, block by block, over the whole band: the resampling around the unmixers."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .audio import Resampler, Wave
from .config import ModelConfig, SeparatorConfig
from .engine import Engine
from .errors import InvalidAudioError
from .schedule import Schedule
from .spectrogram import Spectrogram
from .transfers import Transfers
from .unet import UNet
from .unet_plan import UNetPlan
from .unmixer import PeakMeter, Unmixer, channels_together, joined

LOUDEST = 1e10  # full scale is 1; far beyond, squares of magnitudes leave the range of float32
CPU = torch.device("cpu")


class Check:
    """Finds the samples of a song, given in blocks, that cannot be separated."""

    def __init__(self, sample_rate_hz: int, *, sanitize: bool, first_sample: int = 0) -> None:
        """`first_sample`: where the song was entered, so that messages count from its beginning."""
        self.sample_rate_hz, self.sanitize, self.position = sample_rate_hz, sanitize, first_sample

    def __call__(self, wave: Tensor) -> Tensor:
        """[channels, samples], finite, or an InvalidAudioError that names the first sample that is not."""
        checked = self._finite(wave)
        self.position += wave.shape[-1]
        return checked

    def _finite(self, wave: Tensor) -> Tensor:
        if wave.numel() == 0:
            return wave
        lowest, highest = torch.aminmax(wave)
        if (lowest >= -LOUDEST) & (highest <= LOUDEST):  # false for NaN
            return wave
        good = wave.abs() <= LOUDEST
        if self.sanitize:
            return torch.where(good, wave, 0.0)
        sample, channel = (~good).mT.nonzero()[0].tolist()
        place = self.position + sample
        raise InvalidAudioError(
            f"audio must be finite and below {LOUDEST:g} times full scale, got {wave[channel, sample]:g} at sample "
            f"{place} ({place / self.sample_rate_hz:.3f} s) of channel {channel}; sanitize=True (--sanitize) makes it 0"
        )


class SongPeaks:
    """A first pass over a song: its largest magnitude for each group of channels."""

    def __init__(
        self, model: ModelConfig, config: SeparatorConfig, sample_rate_hz: int, channels: int, device: torch.device
    ) -> None:
        self.down = _Down(sample_rate_hz, model.spectrogram.sample_rate_hz, channels)
        self.groups = channel_groups(channels, channels_together(model, config, channels))
        self.meters = [PeakMeter(model, config, group.stop - group.start, device) for group in self.groups]

    def push(self, wave: Tensor) -> None:
        """[channels, samples]"""
        self._measure(self.down.push(wave))

    def flush(self) -> list[Tensor]:
        """One scalar a group."""
        self._measure(self.down.flush())
        return [meter.flush() for meter in self.meters]

    def _measure(self, narrow: Tensor) -> None:
        for meter, group in zip(self.meters, self.groups, strict=True):
            meter.push(narrow[group])


class StemStream:
    """Takes a song in blocks and gives back its stems, sample for sample, later but complete.

    With resampling, and additive stems, a stem is

        up(unmix(down(mixture))) + gain * (mixture - up(down(mixture)))

    so what the model's rate cannot hold (the highs) is shared out as well, by the gain that the masks give to the bins
    above the network's band. The last stem is the mixture less all others, hence the sum is the mixture.

    All that happens where the networks are, but resampling and what comes after it in main memory.
    """

    def __init__(
        self,
        model: ModelConfig,
        networks: Mapping[str, UNet | UNetPlan] | Engine,
        config: SeparatorConfig,
        sample_rate_hz: int,
        channels: int,
        stems: Sequence[str],
        *,
        peaks: Sequence[Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        """
        Args:
            stems: those to give back.
            peaks: the song's, for models normalised by them.
            schedule: how soon the unmixers answer, see there.
        """
        self.stems = list(stems)
        self.remainder = model.stems[-1] if config.additive and len(model.stems) > 1 else None
        # the remainder needs all other stems, and is not synthesised itself
        if self.remainder in self.stems:
            self.made = list(model.stems[:-1])
        else:
            self.made = [stem for stem in model.stems if stem in self.stems]
        self.groups = channel_groups(channels, channels_together(model, config, channels))
        self.unmixers = [
            Unmixer(
                model,
                networks,
                config,
                group.stop - group.start,
                self.made,
                peak=peaks[i] if peaks else None,
                schedule=schedule,
            )
            for i, group in enumerate(self.groups)
        ]
        self.transfers = Transfers(self.unmixers[0].pending.device)
        model_rate_hz = model.spectrogram.sample_rate_hz
        self.resampled = sample_rate_hz != model_rate_hz
        self.shares_rest = config.additive and self.resampled
        self.device = CPU if self.resampled else self.transfers.device
        self.down = _Down(sample_rate_hz, model_rate_hz, channels)
        # the stems, and below them what is left of the mixture after the way down and up again
        self.up = Resampler(model_rate_hz, sample_rate_hz, (len(self.made) + self.shares_rest) * channels)
        self.mixture = _Waiting()
        self.narrow = _Waiting()  # the mixture at the model's rate, until its stems are there
        frames_per_s = model_rate_hz / self.unmixers[0].spectrogram.hop_length
        self.gains = _Gains(self.unmixers[0].spectrogram, frames_per_s / sample_rate_hz, (len(self.made), channels))

    @torch.inference_mode()
    def push(self, wave: Tensor) -> dict[str, Tensor]:
        """[channels, samples], finite -> the stems' next samples, [channels, samples'] like `wave`, on `device`."""
        wave = wave.to(self.device) if self.resampled else self.transfers.bring(wave)
        self.mixture.push(wave)
        return self._advance(self.down.push(wave), last=False)

    @torch.inference_mode()
    def flush(self) -> dict[str, Tensor]:
        """The stems' last samples; as many have then come out as went in."""
        return self._advance(self.down.flush(), last=True)

    def _advance(self, narrow: Tensor, *, last: bool) -> dict[str, Tensor]:
        stems, gains = self._unmix(narrow, last=last)
        if self.resampled:
            made, mixture = self._widened(stems, gains, narrow, last=last)
        else:
            made, mixture = stems.float(), self.mixture.pull(stems.shape[-1])
        waves = dict(zip(self.made, made.to(mixture.dtype), strict=True))
        if self.remainder in self.stems:
            waves[self.remainder] = mixture - functools.reduce(torch.add, waves.values())
        return {name: waves[name] for name in self.stems}

    def _unmix(self, narrow: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        """[channels, samples] at the model's rate -> stems and gains, [stems, channels, ...], on `device`."""
        narrow = self.transfers.bring(narrow)
        stems, gains = [], []
        for unmixer, group in zip(self.unmixers, self.groups, strict=True):
            parts = [unmixer.push(narrow[group])]
            if last:
                parts.append(unmixer.flush())
            stems.append(joined([stem for stem, _ in parts], -1))
            gains.append(joined([gain for _, gain in parts], -1))
        made, shares = (self.transfers.fetch(joined(rows, 1), self.device) for rows in (stems, gains))
        return made.wait(), shares.wait()

    def _widened(self, stems: Tensor, gains: Tensor, narrow: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        """Stems at the model's rate -> stems at the song's, and the mixture of the same samples."""
        self.narrow.push(narrow)
        mixture_narrow = self.narrow.pull(stems.shape[-1]).numpy()
        rows = [*stems.numpy(), mixture_narrow] if self.shares_rest else [*stems.numpy()]
        wide = self.up.push(rows[0] if len(rows) == 1 else np.concatenate(rows))
        if last:
            wide = np.concatenate((wide, self.up.flush()), axis=-1)
        mixture = self.mixture.pull(wide.shape[-1])  # fewer at the end: the way down and up may add some
        made = wide[:, : mixture.shape[-1]].reshape(len(rows), *mixture.shape)
        if self.shares_rest:
            self.gains.put(gains.numpy())
            made = made[:-1] + self.gains.take(mixture.shape[-1]) * (mixture.numpy() - made[-1])
        return torch.from_numpy(made), mixture


class _Down:
    """The way to the model's rate, in float32: resampling in main memory, or none."""

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self.resampler = None if from_hz == to_hz else Resampler(from_hz, to_hz, channels)
        self.nothing = torch.zeros(channels, 0)

    def push(self, wave: Tensor) -> Tensor:
        if self.resampler is None:
            return wave.float()
        return torch.from_numpy(self.resampler.push(wave.cpu().numpy()))

    def flush(self) -> Tensor:
        return self.nothing if self.resampler is None else torch.from_numpy(self.resampler.flush())


def channel_groups(channels: int, width: int) -> list[slice]:
    """The channels that are separated together, `width` at a time and at the end what is left."""
    return [slice(first, min(first + width, channels)) for first in range(0, channels, width)]


class _Waiting:
    """First in, first out: waves of any length in, waves of the asked length out."""

    def __init__(self) -> None:
        self.waves: deque[Tensor] = deque()

    def push(self, wave: Tensor) -> None:
        if self.waves and not self.waves[0].shape[-1]:
            self.waves.popleft()
        if wave.shape[-1] or not self.waves:
            self.waves.append(wave)

    def pull(self, samples: int) -> Tensor:
        """The oldest `samples` samples, or all there are; something must have been pushed."""
        taken = []
        while True:
            taken.append(self.waves[0][:, :samples])
            self.waves[0] = self.waves[0][:, samples:]
            samples -= taken[-1].shape[-1]
            if not samples or len(self.waves) == 1:
                return joined(taken, -1)
            self.waves.popleft()


class _Gains:
    """The unmixers' gains a frame, interpolated linearly to gains a sample of another rate."""

    def __init__(self, spectrogram: Spectrogram, frames_per_sample: float, rows: tuple[int, int]) -> None:
        self.frames_per_sample = frames_per_sample
        self.first_centre = -spectrogram.n_fft / 2 / spectrogram.hop_length  # of frame 0, in frames after sample 0
        self.waiting: Wave = np.zeros((*rows, 0), np.float32)  # [stems, channels, frames]
        self.frame = 0  # the first that waits
        self.sample = 0  # the next to be asked for

    def put(self, gains: Wave) -> None:
        self.waiting = np.concatenate((self.waiting, gains), axis=-1)

    def take(self, samples: int) -> Wave:
        """[stems, channels, samples]"""
        if not samples:
            return self.waiting[..., :0]
        place = np.arange(self.sample, self.sample + samples) * self.frames_per_sample - self.first_centre
        place -= self.frame  # exact, so that it makes no difference what has been spent
        last = self.waiting.shape[-1] - 1  # its gain holds on
        before = np.minimum(place.astype(np.intp), last)
        fraction = (place - before).astype(np.float32)
        gains = self.waiting.take(before, axis=-1)
        gains += fraction * (self.waiting.take(np.minimum(before + 1, last), axis=-1) - gains)
        self.sample += samples
        spent = max(0, int(before[-1]) - 1)
        self.waiting, self.frame = self.waiting[..., spent:], self.frame + spent
        return gains
