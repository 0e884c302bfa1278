"""Stems of a wave of any sample rate, block by block, over the whole band: the resampling around the `Unmixer`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .audio import Resampler
from .audio.files import SampleQueue
from .errors import InvalidAudioError
from .unmixer import Unmixer

Wave = NDArray[np.floating]  # [channels, samples]


class StemStream:
    """Takes a song in blocks and gives back its stems, sample for sample, later but complete.

    With resampling, and additive stems, a stem is

        up(unmix(down(mixture))) + gain * (mixture - up(down(mixture)))

    so what the model's rate cannot hold (the highs) is shared out as well, by the gain that the masks give to the bins
    above the network's band. The last stem is the mixture less all others, hence the sum is the mixture.
    """

    def __init__(
        self,
        unmixer: Unmixer,
        sample_rate_hz: int,
        channels: int,
        stems: Sequence[str],
        *,
        sanitize: bool = False,
    ) -> None:
        """`stems` names those to give back, of the model's; `unmixer` synthesises what they need: see `synthesised`."""
        model = unmixer.model
        self.unmixer, self.stems, self.sanitize = unmixer, list(stems), sanitize
        self.sample_rate_hz, self.additive = sample_rate_hz, unmixer.config.additive
        model_rate_hz = model.spectrogram.sample_rate_hz
        self.resamples = sample_rate_hz != model_rate_hz
        self.down = Resampler(sample_rate_hz, model_rate_hz, channels)
        # the stems, and below them what is left of the mixture after the way down and up again
        rows = len(unmixer.stems) + (self.additive and self.resamples)
        self.up = Resampler(model_rate_hz, sample_rate_hz, rows * channels)
        self.remainder = model.stems[-1] if self.additive and len(model.stems) > 1 else None
        self.received = 0
        self.mixture = SampleQueue(channels)
        self.narrow = SampleQueue(channels)  # the mixture at the model's rate, until its stems are there
        self.gains = _Gains(unmixer, sample_rate_hz, channels)

    @staticmethod
    def synthesised(model_stems: Sequence[str], stems: Sequence[str], *, additive: bool) -> list[str]:
        """The stems that the networks must make so that `stems` can be given: the last may be had by subtraction."""
        if additive and model_stems[-1] in stems and len(model_stems) > 1:
            return list(model_stems[:-1])
        return [stem for stem in model_stems if stem in stems]

    def push(self, wave: Wave) -> dict[str, Wave]:
        """[channels, samples] -> the stems' next samples, each [channels, samples'], dtype of `wave`.

        Raises:
            InvalidAudioError: a sample is NaN or infinite, and `sanitize` is off.
        """
        wave = self._finite(wave)
        self.received += wave.shape[-1]
        self.mixture.push(wave)
        return self._advance(self.down.push(wave.astype(np.float32, copy=False)), last=False)

    def flush(self) -> dict[str, Wave]:
        """The stems' last samples; as many have then come out as went in."""
        return self._advance(self.down.flush(), last=True)

    @torch.inference_mode()
    def _advance(self, narrow: Wave, *, last: bool) -> dict[str, Wave]:
        self.narrow.push(narrow)
        stems, gains = self.unmixer.push(torch.from_numpy(narrow))
        if last:
            rest, rest_gains = self.unmixer.flush()
            stems, gains = torch.cat((stems, rest), -1), torch.cat((gains, rest_gains), -1)
        rows = [*stems.cpu().numpy()]
        mixture_narrow = self.narrow.pull(stems.shape[-1])
        if self.additive and self.resamples:
            rows.append(mixture_narrow)
        wide = self._up(np.concatenate(rows), last=last)
        wide = wide[:, : self.mixture.samples]  # the way down and up may add a few samples at the end
        mixture = self.mixture.pull(wide.shape[-1])
        made = wide.reshape(len(rows), *mixture.shape)
        if self.additive and self.resamples:
            self.gains.put(gains.cpu().numpy())
            lost = mixture - made[-1]
            made = made[:-1] + self.gains.take(wide.shape[-1]) * lost
        made = made.astype(mixture.dtype, copy=False)
        waves = dict(zip(self.unmixer.stems, made, strict=True))
        if self.remainder in self.stems:
            waves[self.remainder] = mixture - sum(waves.values())
        return {name: waves[name] for name in self.stems}

    def _up(self, narrow: Wave, *, last: bool) -> Wave:
        wide = self.up.push(narrow)
        return np.concatenate((wide, self.up.flush()), axis=-1) if last else wide

    def _finite(self, wave: Wave) -> Wave:
        if np.isfinite(wave).all():
            return wave
        if self.sanitize:
            return np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0)
        channel, sample = min(np.argwhere(~np.isfinite(wave)).tolist(), key=lambda place: place[::-1])
        raise InvalidAudioError(
            f"audio must be finite, got {wave[channel, sample]} at sample {self.received + sample} "
            f"({(self.received + sample) / self.sample_rate_hz:.3f} s) of channel {channel}; sanitize=True "
            "(--sanitize) replaces such samples by 0"
        )


class _Gains:
    """The unmixer's gains a frame, interpolated linearly to gains a sample of another rate."""

    def __init__(self, unmixer: Unmixer, sample_rate_hz: int, channels: int) -> None:
        spectrogram = unmixer.spectrogram
        frames_per_second = unmixer.model.spectrogram.sample_rate_hz / spectrogram.hop_length
        self.frames_per_sample = frames_per_second / sample_rate_hz
        self.first_centre = -spectrogram.n_fft / 2 / spectrogram.hop_length  # of frame 0, in frames after sample 0
        self.waiting: Wave = np.zeros((len(unmixer.stems), channels, 0), np.float32)  # [stems, channels, frames]
        self.frame = 0  # the first that waits
        self.sample = 0  # the next to be asked for

    def put(self, gains: Wave) -> None:
        self.waiting = np.concatenate((self.waiting, gains), axis=-1)

    def take(self, samples: int) -> Wave:
        """[stems, channels, samples]"""
        if not samples:
            return self.waiting[..., :0]
        frames = np.arange(self.sample, self.sample + samples) * self.frames_per_sample - self.first_centre
        at = np.arange(self.frame, self.frame + self.waiting.shape[-1])
        gains = np.empty((*self.waiting.shape[:-1], samples), np.float32)
        for place in np.ndindex(gains.shape[:-1]):
            gains[place] = np.interp(frames, at, self.waiting[place])
        self.sample += samples
        spent = max(0, min(int(frames[-1]), at[-1]) - self.frame - 1)
        self.waiting, self.frame = self.waiting[..., spent:], self.frame + spent
        return gains
