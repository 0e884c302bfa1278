"""The networks at work: a wave at the model's own rate in, stems' waves out, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import ops
from .config import ModelConfig, SeparatorConfig
from .spectrogram import Spectrogram, default_grids, join_patches, split_patches
from .unet import UNet

UPPER_BAND = 0.25  # share of the network's band whose masks speak for the bins above it


def _slots(channels: int, width: int) -> list[int]:
    """The channel that each of the networks' input slots reads, `width` slots a group; the last one is repeated."""
    return [min(slot, channels - 1) for slot in range(-(-channels // width) * width)]


class PeakMeter:
    """The largest magnitude of a song in the network's band, for each group of channels."""

    def __init__(self, model: ModelConfig, config: SeparatorConfig, channels: int, device: torch.device) -> None:
        self.model, self.channel_of_slot = model, _slots(channels, model.unet.input_channels)
        self.spectrogram = Spectrogram(
            model.spectrogram, grids=config.grids or default_grids(model.spectrogram), device=device
        )
        self.pending = torch.zeros(channels, self.spectrogram.n_fft, device=device)
        self.loudest = torch.zeros(channels, device=device)

    @torch.inference_mode()
    def push(self, wave: Tensor) -> None:
        """[channels, samples], at the model's rate."""
        self.pending = torch.cat((self.pending, wave.to(self.pending)), dim=-1)
        frames = (self.pending.shape[-1] - self.spectrogram.n_fft) // self.spectrogram.hop_length + 1
        if frames > 0:
            spectrum = self.spectrogram.analyse(self.pending[:, : self.spectrogram.span(frames)])
            first, bins = self.model.spectrogram.first_bin, self.model.spectrogram.bins
            self.loudest = torch.maximum(self.loudest, spectrum[:, first : first + bins].abs().amax((1, 2)))
            self.pending = self.pending[:, frames * self.spectrogram.hop_length :]

    def flush(self) -> Tensor:
        """The song has ended: [groups, 1, 1, 1]."""
        self.push(torch.zeros(self.pending.shape[0], self.spectrogram.n_fft))
        by_group = self.loudest[self.channel_of_slot].view(-1, self.model.unet.input_channels)
        return by_group.amax(1).view(-1, 1, 1, 1)


class Unmixer:
    """Separates one wave at the model's sample rate.

    However a wave is cut into blocks, it is worked on in the same segments of a few patches, so the stems are the same
    bits, and memory is bounded by a segment. A segment's frames overlap the next one's by a patch's cross-fade.

    Channels go through the network in groups of its input channels; a channel that is left over fills its group by
    repetition, and its masks are averaged.
    """

    def __init__(
        self,
        model: ModelConfig,
        networks: Mapping[str, UNet],
        config: SeparatorConfig,
        channels: int,
        stems: Sequence[str],
        *,
        peak: Tensor | None = None,
    ) -> None:
        """`stems` names those to synthesise; `peak` [groups, 1, 1, 1] is the song's, for models normalised by it."""
        weight = next(next(iter(networks.values())).parameters())
        self.model, self.networks, self.config, self.stems, self.peak = model, networks, config, stems, peak
        self.grids = config.grids or default_grids(model.spectrogram)
        self.spectrogram = Spectrogram(model.spectrogram, grids=self.grids, device=weight.device, dtype=weight.dtype)
        self.channel_of_slot = _slots(channels, model.unet.input_channels)
        self.groups = len(self.channel_of_slot) // model.unet.input_channels
        # the overlap is a multiple of the network's stride: its answer depends on where a patch lies on that grid
        stride = model.unet.stride
        self.overlap = round(config.overlap * model.patch_frames / stride) * stride
        self.patch_stride = model.patch_frames - self.overlap
        self.batch = config.batch_patches or (1 if weight.device.type == "cpu" else 16)
        self.patches = max(1, self.batch // self.groups)

        n_fft, hop = self.spectrogram.n_fft, self.spectrogram.hop_length
        self.pending = weight.new_zeros(channels, n_fft)  # samples from the next frame's first on
        self.faded: Tensor | None = None
        self.tail = weight.new_zeros(len(stems), channels, n_fft - hop)
        self.position = -n_fft  # of the next sample to synthesise; the song starts at 0

    def push(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Takes [channels, samples] and returns what it completes.

        Returns:
            stems [stems, channels, samples'], and gains [stems, channels, frames'] for what lies above the network's
            band; the centre of frame k is sample k * hop_length - n_fft / 2.
        """
        self.pending = torch.cat((self.pending, wave.to(self.pending)), dim=-1)
        needed = self.spectrogram.span((self.patches * self.patch_stride + self.overlap) * self.grids)
        done = []
        while self.pending.shape[-1] >= needed:
            done.append(self._segment(self.patches, last=False))
        if not done:
            return self.tail[..., :0], self.tail[..., :0]
        stems, gains = zip(*done, strict=True)
        return torch.cat(stems, dim=-1), torch.cat(gains, dim=-1)

    def flush(self) -> tuple[Tensor, Tensor]:
        """Returns the rest; the song ends with the last sample that was pushed."""
        end = self.position + self.pending.shape[-1]
        frames = -(-self.pending.shape[-1] // (self.spectrogram.hop_length * self.grids))
        patches = max(1, -(-(frames - self.overlap) // self.patch_stride))
        padded = self.spectrogram.span((patches * self.patch_stride + self.overlap) * self.grids)
        self.pending = functional.pad(self.pending, (0, padded - self.pending.shape[-1]))
        stems, gains = self._segment(patches, last=True)
        surplus = self.position - end
        return stems[..., : stems.shape[-1] - surplus], gains

    def _segment(self, patches: int, *, last: bool) -> tuple[Tensor, Tensor]:
        """Separates the next `patches` patches: wave -> spectrum -> masks -> stems' spectra -> waves."""
        hop = self.spectrogram.hop_length
        samples = self.spectrogram.span((patches * self.patch_stride + self.overlap) * self.grids)
        spectrum = self.spectrogram.analyse(self.pending[:, :samples])
        masks = self._masks(spectrum, last=last)
        gains = self._gains(masks)
        frames = masks.shape[-1]
        self.pending = self.pending[:, frames * hop :]

        overlapping = torch.stack(
            [
                self.spectrogram.synthesise(self._masked(spectrum[..., :frames], mask, gain))
                for mask, gain in zip(masks, gains, strict=True)
            ]
        )
        overlapping[..., : self.tail.shape[-1]] += self.tail
        waves, self.tail = overlapping[..., : frames * hop], overlapping[..., frames * hop :]
        before_song = max(0, -self.position)
        self.position += frames * hop
        return waves[..., before_song:], gains

    def _masks(self, spectrum: Tensor, *, last: bool) -> Tensor:
        """spectrum [channels, n_fft // 2 + 1, frames] -> masks [stems, channels, bins, frames'], overlap joined."""
        first, bins = self.model.spectrogram.first_bin, self.model.spectrogram.bins
        magnitude = spectrum[self.channel_of_slot, first : first + bins].abs()
        by_grid = magnitude.unflatten(-1, (-1, self.grids)).movedim(-1, 0)  # frame k of grid g is k * grids + g
        grouped = by_grid.unflatten(1, (self.groups, -1))  # [grids, groups, input_channels, bins, frames]
        patches = split_patches(grouped, self.model.patch_frames, self.patch_stride)
        masks = self._patch_masks(patches.flatten(0, 2)).unflatten(1, patches.shape[:3])

        joined, self.faded = join_patches(masks.movedim(1, 0), self.patch_stride, self.faded, last=last)
        by_slot = joined.movedim(1, -1).flatten(-2).flatten(1, 2)  # [stems, slots, bins, frames * grids]
        channels = spectrum.shape[0]
        if by_slot.shape[1] == channels:
            return by_slot
        repeated = by_slot[:, channels - 1 :].mean(1, keepdim=True)
        return torch.cat((by_slot[:, : channels - 1], repeated), dim=1)

    def _patch_masks(self, magnitude: Tensor) -> Tensor:
        """magnitude [batch, input_channels, bins, patch_frames] -> masks [stems, ...] of `self.stems`."""
        magnitude = magnitude / self._peak(magnitude)
        ratio = self.config.additive or self.model.masks == "ratio"
        names = self.model.stems if ratio else self.stems
        soft = torch.stack([torch.cat([self.networks[name](x) for x in magnitude.split(self.batch)]) for name in names])
        if not ratio:
            return soft
        masks = ops.ratio_mask(
            soft * magnitude,
            magnitude if len(names) == 1 else None,  # a lone stem is weighed against the rest of the mixture
            power=self.model.mask_power,
            epsilon=self.model.mask_epsilon,
        )
        return masks[[self.model.stems.index(name) for name in self.stems]]

    def _peak(self, magnitude: Tensor) -> Tensor | float:
        """What the model's magnitudes are divided by; a silent patch or song stays silent."""
        if self.model.normalisation == "none":
            return 1.0
        if self.model.normalisation == "song":
            assert self.peak is not None
            peak = self.peak.repeat(magnitude.shape[0] // self.groups, 1, 1, 1)
        else:
            peak = magnitude.amax((1, 2, 3), keepdim=True)
        return peak.clamp(min=torch.finfo(peak.dtype).tiny)

    def _gains(self, masks: Tensor) -> Tensor:
        """masks [..., bins, frames] -> one gain a frame for all that the network does not see above its band."""
        if self.config.mask_extension == "zeros":
            return torch.zeros_like(masks[..., 0, :])
        rows = masks.shape[-2] if self.config.mask_extension == "average" else round(UPPER_BAND * masks.shape[-2])
        return masks[..., -max(1, rows) :, :].mean(-2)

    def _masked(self, spectrum: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
        """spectrum [channels, n_fft // 2 + 1, frames] times mask [channels, bins, frames], extended to all bins.

        A single bin beyond the band (the dropped DC or Nyquist) takes its neighbour's mask.
        """
        first = self.model.spectrogram.first_bin
        end = first + self.model.spectrogram.bins
        masked = torch.empty_like(spectrum)
        torch.mul(spectrum[:, :first], mask[:, :1], out=masked[:, :first])
        torch.mul(spectrum[:, first:end], mask, out=masked[:, first:end])
        above = gain.unsqueeze(-2) if spectrum.shape[-2] - end > 1 else mask[:, -1:]
        torch.mul(spectrum[:, end:], above, out=masked[:, end:])
        return masked
