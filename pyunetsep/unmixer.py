"""The networks at work: a wave at the model's own rate in, stems' waves out, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor
from torch.nn import functional

from . import ops
from .config import ModelConfig, SeparatorConfig
from .engine import Engine, Estimator, Networks, batch_patches
from .schedule import Schedule, whole_patches
from .spectrogram import Spectrogram, default_grids, join_patches, split_patches
from .unet import UNet
from .unet_plan import UNetPlan

UPPER_BAND_HZ = 4096  # of the network's band, from its upper edge down: the masks that speak for the bins above it


def make_spectrogram(
    model: ModelConfig, config: SeparatorConfig, device: torch.device, dtype: torch.dtype = torch.float32
) -> Spectrogram:
    """The transform that inference runs on, its frames those of all shifted grids."""
    return Spectrogram(model.spectrogram, grids=grids_of(model, config), device=device, dtype=dtype)


def grids_of(model: ModelConfig, config: SeparatorConfig) -> int:
    """The number of shifted grids."""
    return config.grids or default_grids(model.spectrogram)


def shares_masks(model: ModelConfig, config: SeparatorConfig, channels: int) -> bool:
    """Whether a song's channels, however many, all have the masks of their middle."""
    return config.stereo_masks == "mid" and channels > model.unet.input_channels == 1


def channels_together(model: ModelConfig, config: SeparatorConfig, channels: int) -> int:
    """How many of a song's channels one Unmixer takes."""
    return channels if shares_masks(model, config, channels) else model.unet.input_channels


def middle(wave: Tensor) -> Tensor:
    """The mean of a wave's channels, as the one channel of a wave."""
    # sample by sample in the channels' order, which `mean` gives up at some places in memory
    return reduce(torch.add, wave.split(1)) / wave.shape[0]


class PeakMeter:
    """The largest magnitude of a song in the network's band, over the channels that it sees together."""

    def __init__(self, model: ModelConfig, config: SeparatorConfig, channels: int, device: torch.device) -> None:
        self.spectrogram = make_spectrogram(model, config, device)
        self.of_middle = shares_masks(model, config, channels)
        self.pending = torch.zeros(channels, self.spectrogram.n_fft, device=device)
        self.loudest = torch.zeros((), device=device)

    @torch.inference_mode()
    def push(self, wave: Tensor) -> None:
        """[channels, samples], at the model's rate."""
        self.pending = torch.cat((self.pending, wave.to(self.pending)), dim=-1)
        frames = (self.pending.shape[-1] - self.spectrogram.n_fft) // self.spectrogram.hop_length + 1
        if frames > 0:
            heard = middle(self.pending) if self.of_middle else self.pending
            self.loudest = torch.maximum(self.loudest, self.spectrogram.magnitudes(heard).max())
            self.pending = self.pending[:, frames * self.spectrogram.hop_length :]

    def flush(self) -> Tensor:
        """The song has ended; returns its peak, a scalar."""
        self.push(torch.zeros(self.pending.shape[0], self.spectrogram.n_fft))
        return self.loudest


class Unmixer:
    """Separates one wave at the model's sample rate, of `channels_together` channels or fewer.

    However a wave is cut into blocks, it is worked on in the same segments of a few patches, so the stems are the same
    bits, and memory is bounded by a segment. A segment's frames overlap the next one's by a patch's cross-fade.

    A GPU that has not the memory for a segment gets smaller ones: what a segment changes is kept only if it succeeds.
    """

    def __init__(
        self,
        model: ModelConfig,
        networks: Mapping[str, UNet | UNetPlan] | Engine,
        config: SeparatorConfig,
        channels: int,
        stems: Sequence[str],
        *,
        peak: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        """
        Args:
            stems: those to synthesise.
            peak: the song's, for models normalised by it.
            schedule: for a stream: patches go through the networks one by one, each as soon as it is complete. None:
                several at once, whole.
        """
        if isinstance(networks, Engine):
            self.engine = networks
        else:
            estimator = Networks(networks)
            self.engine = Engine(estimator, batch_patches(model, config, estimator.device))
        self.at_once = self.engine.batch if schedule is None else 1
        schedule = schedule or whole_patches(model, config)
        self.segment = Segment(model, config, self.engine.estimator, channels, tuple(stems), schedule)
        self.spectrogram, self.peak = self.segment.spectrogram, peak

        n_fft, hop = self.spectrogram.n_fft, self.spectrogram.hop_length
        device, dtype = self.engine.estimator.device, self.engine.estimator.dtype
        # from the first sample of the next patch on; before a song there is silence
        silence = n_fft + self.segment.context * hop
        self.pending = torch.zeros(channels, silence, device=device, dtype=dtype)
        self.tail = torch.zeros(len(stems), channels, n_fft - hop, device=device, dtype=dtype)
        self.faded: Tensor | None = None
        self.position = -n_fft  # of the next sample to synthesise; the song starts at 0

    def push(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Takes [channels, samples] and returns what it completes.

        Returns:
            stems [stems, channels, samples'], and gains [stems, channels, frames'] for what lies above the network's
            band; the centre of frame k is sample k * hop_length - n_fft / 2.
        """
        self.pending = torch.cat((self.pending, wave.to(self.pending)), dim=-1)
        done = []
        while self.pending.shape[-1] >= self.segment.samples(self.batch):
            done += self._advance(self.batch, last=False)
        if not done:
            return self.tail[..., :0], self.tail[..., :0]
        stems, gains = zip(*done, strict=True)
        return joined(stems, -1), joined(gains, -1)

    def flush(self) -> tuple[Tensor, Tensor]:
        """Returns the rest; the song ends with the last sample that was pushed."""
        unseen = self.pending.shape[-1] - self.segment.context * self.spectrogram.hop_length
        end = self.position + unseen
        patches = self.segment.patches(unseen)
        self.pending = functional.pad(self.pending, (0, self.segment.samples(patches) - self.pending.shape[-1]))
        done, at_once = [], patches  # which may be one more than a batch
        while patches > 0:
            made = self._advance(min(patches, at_once), last=patches <= at_once)
            if made:
                patches -= at_once
            else:
                at_once = self.batch
            done += made
        stems, gains = zip(*done, strict=True)
        made_stems = joined(stems, -1)
        return made_stems[..., : made_stems.shape[-1] - (self.position - end)], joined(gains, -1)

    @property
    def batch(self) -> int:
        """Patches that go through the networks at once."""
        return min(self.at_once, self.engine.batch)

    def _advance(self, patches: int, *, last: bool) -> list[tuple[Tensor, Tensor]]:
        """The next `patches` patches' stems and gains; none, and a smaller batch, if memory does not hold them."""
        segment, batch = self.segment, self.batch
        if self.position == -self.spectrogram.n_fft:
            self._precede()
        wave = self.pending[:, : segment.samples(patches)]
        try:
            stems, gains, tail, faded = self.engine.run(
                segment, wave, self.tail, self.faded, self.peak, batch=batch, last=last
            )
        except torch.OutOfMemoryError:
            pass  # until this clause ends, the error holds on to the segment's tensors
        else:
            assert stems is not None and gains is not None and tail is not None
            self.tail, self.faded = tail, faded
            self.pending = self.pending[:, stems.shape[-1] :]
            before_song = max(0, -self.position)
            self.position += stems.shape[-1]
            return [(stems[..., before_song:], gains)]
        if patches <= batch:  # else a batch may fit
            self.engine.halve(min(batch, patches * segment.grids))
        return []

    def _precede(self) -> None:
        """Puts what the first patch hears of the song before it, over and over, as the context of the first patches.

        The networks have never heard silence for so long; with it the first seconds are some dB worse.
        """
        context = self.segment.context * self.spectrogram.hop_length
        beginning = self.pending[:, context + self.spectrogram.n_fft : self.segment.samples(1)]
        if context and beginning.shape[-1]:
            times = -(-context // beginning.shape[-1])
            self.pending[:, :context] = beginning.repeat(1, times)[:, -context:]


@dataclass(frozen=True)
class Segment:
    """What becomes of some patches of a wave, as a function of tensors: wave -> spectrum -> masks -> stems' waves.

    Equal ones do the same, so that a CUDA graph of one serves all. Where channels are missing the last one is repeated,
    and its masks are averaged; where they share masks these are made once, from the middle.
    """

    model: ModelConfig
    config: SeparatorConfig
    estimator: Estimator
    channels: int
    stems: tuple[str, ...]
    schedule: Schedule

    def __call__(
        self, wave: Tensor, tail: Tensor, faded: Tensor | None, peak: Tensor | None, *, batch: int, last: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """
        Args:
            wave: [channels, samples(patches)]
            tail: [stems, channels, n_fft - hop_length], what the segment before gives to this one's first samples.
            faded: what its last patch gives to this one's first frames; None for the first segment.
            peak: the song's, for models normalised by it.
            batch: patches that go through the networks at once.
            last: the song ends here.
        Returns:
            stems [stems, channels, samples'], gains [stems, channels, frames'], and the next segment's tail and faded.
        """
        spectrogram = self.spectrogram
        shared = shares_masks(self.model, self.config, self.channels)
        if self.stores_spectrum:
            spectrum, magnitude = spectrogram.analyse(wave)
        if shared:
            magnitude = spectrogram.magnitudes(middle(wave))
        elif not self.stores_spectrum:
            magnitude = spectrogram.magnitudes(wave)
        masks, faded = self._masks(magnitude, faded, peak, batch, last=last)
        gains = self._gains(masks)
        if shared:
            masks = masks.expand(-1, self.channels, -1, -1)
            gains = gains.expand(-1, self.channels, -1)
        first, frames = self.context, masks.shape[-2]
        if self.stores_spectrum:
            overlapping = spectrogram.synthesise(spectrum[:, first : first + frames], masks, gains)
        else:
            overlapping = spectrogram.filter(wave[:, first * spectrogram.hop_length :], masks, gains)
        overlapping[..., : tail.shape[-1]] += tail
        done = frames * spectrogram.hop_length
        # the tail is not a view, which would keep the whole segment
        return overlapping[..., :done], gains, overlapping[..., done:].clone(), faded

    @property
    def stores_spectrum(self) -> bool:
        return self.estimator.device.type == "cpu"  # a GPU transforms twice in less time than it stores the spectrum in

    @cached_property
    def spectrogram(self) -> Spectrogram:
        return make_spectrogram(self.model, self.config, self.estimator.device, self.estimator.dtype)

    @cached_property
    def grids(self) -> int:
        return grids_of(self.model, self.config)

    @property
    def context(self) -> int:
        """Frames, of all grids together, that the first patch hears before those that it has masks for."""
        return self.schedule.context * self.grids

    def samples(self, patches: int) -> int:
        """Of a segment of so many patches (on each grid)."""
        return self.spectrogram.span(self.schedule.frames(patches) * self.grids)

    def patches(self, samples: int) -> int:
        """That it takes for masks of every frame that starts in so many samples."""
        return self.schedule.patches(-(-samples // (self.spectrogram.hop_length * self.grids)))

    def _masks(
        self, magnitude: Tensor, faded: Tensor | None, peak: Tensor | None, batch: int, *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """magnitude [channels, frames, bins] -> masks [stems, channels, frames', bins], overlap joined; and `faded`."""
        channels = magnitude.shape[0]
        missing = self.model.unet.input_channels - channels
        by_slot = magnitude
        if missing:
            by_slot = torch.cat((magnitude, magnitude[-1:].expand(missing, -1, -1)))
        by_grid = by_slot.unflatten(-2, (-1, self.grids))  # frame k of grid g is k * grids + g
        patches = split_patches(by_grid, self.model.patch_frames, self.schedule.step)
        together = patches.movedim(-2, 1)  # [patches, grids, slots, patch_frames, bins], as the masks below
        masks = self._patch_masks(together.flatten(0, 1).mT, peak, batch)
        masks = masks.mT.unflatten(1, together.shape[:2]).movedim(1, 0)

        used = masks.movedim(2, -2).narrow(-3, self.schedule.context, self.schedule.used)
        run, faded = join_patches(used, self.schedule.step, faded, last=last)
        run = run.flatten(-3, -2)
        if missing:
            repeated = run[:, channels - 1 :].mean(1, keepdim=True)
            run = torch.cat((run[:, : channels - 1], repeated), dim=1)
        return run, faded

    def _patch_masks(self, magnitude: Tensor, peak: Tensor | None, batch: int) -> Tensor:
        """magnitude [patches, input_channels, bins, patch_frames] -> masks [stems, ...] of `self.stems`."""
        if self.model.normalisation != "none":
            if self.model.normalisation == "patch":
                peak = magnitude.amax((1, 2, 3), keepdim=True)
            assert peak is not None, "a model that is normalised by the song's maximum needs that"
            magnitude = magnitude / peak.clamp(min=torch.finfo(peak.dtype).tiny)  # silence stays silent
        elif (limit := self.estimator.largest_magnitude) is not None:  # others stay as they are, to the bit
            magnitude = magnitude * (limit / magnitude.amax((1, 2, 3), keepdim=True).clamp(min=limit))
        ratio = self.config.additive or self.model.masks == "ratio"
        names = self.model.stems if ratio else self.stems
        patches, channels, bins, frames = magnitude.shape
        estimates = magnitude.new_empty(len(names), patches, channels, frames, bins)  # bins innermost, as in magnitude
        for part, out in zip(magnitude.split(batch), estimates.split(batch, dim=1), strict=True):
            self.estimator.estimate(part, names, masked=ratio, out=out.mT)
        if not ratio:
            return estimates.mT
        masks = ops.ratio_mask(
            estimates,
            magnitude.mT if len(names) == 1 else None,  # a lone stem is weighed against the rest of the mixture
            power=self.model.mask_power,
            epsilon=self.model.mask_epsilon,
        ).mT
        first = names.index(self.stems[0])
        if names[first : first + len(self.stems)] == self.stems:
            return masks[first : first + len(self.stems)]
        return torch.stack([masks[names.index(name)] for name in self.stems])

    def _gains(self, masks: Tensor) -> Tensor:
        """masks [..., frames, bins] -> one gain a frame for all that the network does not see above its band."""
        if self.config.mask_extension == "zeros":
            return masks.new_zeros(masks.shape[:-1])
        bins = masks.shape[-1]
        averaged = bins
        if self.config.mask_extension == "upper":
            bin_hz = self.model.spectrogram.sample_rate_hz / self.model.spectrogram.n_fft
            averaged = min(bins, max(1, round(UPPER_BAND_HZ / bin_hz)))
        return masks[..., bins - averaged :].mean(-1)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The parts as one tensor: a copy, but of one part alone."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
