"""The networks at work: a wave at the model's own rate in, stems' waves out, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import ops
from .config import ModelConfig, SeparatorConfig
from .spectrogram import Spectrogram, default_grids, join_patches, split_patches
from .unet import UNet
from .unet_plan import UNetPlan

CPU_BATCH = 2**18  # magnitudes in a network at once
UPPER_BAND = 0.25  # share of the network's band whose masks speak for the bins above it


def make_spectrogram(
    model: ModelConfig, config: SeparatorConfig, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Spectrogram, int]:
    """The transform that inference runs on, and its number of shifted grids."""
    grids = config.grids or default_grids(model.spectrogram)
    return Spectrogram(model.spectrogram, grids=grids, device=device, dtype=dtype), grids


def batch_patches(model: ModelConfig, config: SeparatorConfig, device: torch.device) -> int:
    """How many patches go through a network at once."""
    if config.batch_patches is not None:
        return config.batch_patches
    if device.type != "cpu":
        return 16
    # On a CPU more patches share each pass over the weights, but fewer stay in the caches and come back sooner.
    return min(max(1, CPU_BATCH // (model.unet.input_channels * model.spectrogram.bins * model.patch_frames)), 4)


class PeakMeter:
    """The largest magnitude of a song in the network's band, over the channels that it sees together."""

    def __init__(self, model: ModelConfig, config: SeparatorConfig, channels: int, device: torch.device) -> None:
        self.spectrogram, _ = make_spectrogram(model, config, device)
        self.pending = torch.zeros(channels, self.spectrogram.n_fft, device=device)
        self.loudest = torch.zeros((), device=device)

    @torch.inference_mode()
    def push(self, wave: Tensor) -> None:
        """[channels, samples], at the model's rate."""
        self.pending = torch.cat((self.pending, wave.to(self.pending)), dim=-1)
        frames = (self.pending.shape[-1] - self.spectrogram.n_fft) // self.spectrogram.hop_length + 1
        if frames > 0:
            _, magnitude = self.spectrogram.analyse(self.pending)
            self.loudest = torch.maximum(self.loudest, magnitude.max())
            self.pending = self.pending[:, frames * self.spectrogram.hop_length :]

    def flush(self) -> Tensor:
        """The song has ended; returns its peak, a scalar."""
        self.push(torch.zeros(self.pending.shape[0], self.spectrogram.n_fft))
        return self.loudest


class Unmixer:
    """Separates one wave of as many channels as the networks take, or fewer, at the model's sample rate.

    However a wave is cut into blocks, it is worked on in the same segments of a few patches, so the stems are the same
    bits, and memory is bounded by a segment. A segment's frames overlap the next one's by a patch's cross-fade.

    Where channels are missing the last one is repeated, and its masks are averaged.
    """

    def __init__(
        self,
        model: ModelConfig,
        networks: Mapping[str, UNet | UNetPlan],
        config: SeparatorConfig,
        channels: int,
        stems: Sequence[str],
        *,
        peak: Tensor | None = None,
    ) -> None:
        """`stems` names those to synthesise; `peak` is the song's, for models normalised by it."""
        network = next(iter(networks.values()))
        device, dtype = network.device, network.dtype
        self.model, self.networks, self.config, self.stems, self.peak = model, networks, config, stems, peak
        self.spectrogram, self.grids = make_spectrogram(model, config, device, dtype)
        self.slots = [min(slot, channels - 1) for slot in range(model.unet.input_channels)]  # the channel of each
        # the overlap is a multiple of the network's stride: its answer depends on where a patch lies on that grid
        stride = model.unet.stride
        self.overlap = round(config.overlap * model.patch_frames / stride) * stride
        self.patch_stride = model.patch_frames - self.overlap
        self.batch = batch_patches(model, config, device)

        n_fft, hop = self.spectrogram.n_fft, self.spectrogram.hop_length
        self.pending = torch.zeros(channels, n_fft, device=device, dtype=dtype)  # from the next frame's first sample on
        self.faded: Tensor | None = None
        self.tail = torch.zeros(len(stems), channels, n_fft - hop, device=device, dtype=dtype)
        self.position = -n_fft  # of the next sample to synthesise; the song starts at 0

    def push(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Takes [channels, samples] and returns what it completes.

        Returns:
            stems [stems, channels, samples'], and gains [stems, channels, frames'] for what lies above the network's
            band; the centre of frame k is sample k * hop_length - n_fft / 2.
        """
        self.pending = torch.cat((self.pending, wave.to(self.pending)), dim=-1)
        needed = self.spectrogram.span((self.batch * self.patch_stride + self.overlap) * self.grids)
        done = []
        while self.pending.shape[-1] >= needed:
            done.append(self._segment(self.batch, last=False))
        if not done:
            return self.tail[..., :0], self.tail[..., :0]
        stems, gains = zip(*done, strict=True)
        return joined(stems, -1), joined(gains, -1)

    def flush(self) -> tuple[Tensor, Tensor]:
        """Returns the rest; the song ends with the last sample that was pushed."""
        end = self.position + self.pending.shape[-1]
        frames = -(-self.pending.shape[-1] // (self.spectrogram.hop_length * self.grids))
        patches = max(1, -(-(frames - self.overlap) // self.patch_stride))
        padded = self.spectrogram.span((patches * self.patch_stride + self.overlap) * self.grids)
        self.pending = functional.pad(self.pending, (0, padded - self.pending.shape[-1]))
        stems, gains = self._segment(patches, last=True)
        return stems[..., : stems.shape[-1] - (self.position - end)], gains

    def _segment(self, patches: int, *, last: bool) -> tuple[Tensor, Tensor]:
        """Separates the next `patches` patches: wave -> spectrum -> masks -> stems' spectra -> waves."""
        hop = self.spectrogram.hop_length
        samples = self.spectrogram.span((patches * self.patch_stride + self.overlap) * self.grids)
        spectrum, magnitude = self.spectrogram.analyse(self.pending[:, :samples])
        masks = self._masks(magnitude, last=last)
        gains = self._gains(masks)
        frames = masks.shape[-2]
        self.pending = self.pending[:, frames * hop :]

        overlapping = self.spectrogram.synthesise(spectrum[:, :frames], masks, gains)
        overlapping[..., : self.tail.shape[-1]] += self.tail
        self.tail = overlapping[..., frames * hop :].clone()  # not a view, which would keep the whole segment
        before_song = max(0, -self.position)
        self.position += frames * hop
        return overlapping[..., before_song : frames * hop], gains

    def _masks(self, magnitude: Tensor, *, last: bool) -> Tensor:
        """magnitude [channels, frames, bins] -> masks [stems, channels, frames', bins], overlap joined."""
        channels = magnitude.shape[0]
        by_slot = magnitude if len(self.slots) == channels else magnitude[self.slots]
        by_grid = by_slot.unflatten(-2, (-1, self.grids))  # frame k of grid g is k * grids + g
        patches = split_patches(by_grid, self.model.patch_frames, self.patch_stride)
        batch = patches.movedim(-2, 1)  # [patches, grids, slots, patch_frames, bins], as the masks below
        masks = self._patch_masks(batch.flatten(0, 1).mT).mT.unflatten(1, batch.shape[:2]).movedim(1, 0)

        joined, self.faded = join_patches(masks.movedim(2, -2), self.patch_stride, self.faded, last=last)
        joined = joined.flatten(-3, -2)
        if len(self.slots) == channels:
            return joined
        repeated = joined[:, channels - 1 :].mean(1, keepdim=True)
        return torch.cat((joined[:, : channels - 1], repeated), dim=1)

    def _patch_masks(self, magnitude: Tensor) -> Tensor:
        """magnitude [batch, input_channels, bins, patch_frames] -> masks [stems, ...] of `self.stems`."""
        if self.model.normalisation != "none":
            magnitude = magnitude / self._peak(magnitude)
        ratio = self.config.additive or self.model.masks == "ratio"
        names = self.model.stems if ratio else self.stems
        batch, channels, bins, frames = magnitude.shape
        estimates = magnitude.new_empty(len(names), batch, channels, frames, bins)  # bins innermost, as in magnitude
        with _full_precision(magnitude.device):
            for name, estimate in zip(names, estimates, strict=True):
                for part, out in zip(magnitude.split(self.batch), estimate.split(self.batch), strict=True):
                    self.networks[name].estimate(part, masked=ratio, out=out.mT)
        if not ratio:
            return estimates.mT
        masks = ops.ratio_mask(
            estimates,
            magnitude.mT if len(names) == 1 else None,  # a lone stem is weighed against the rest of the mixture
            power=self.model.mask_power,
            epsilon=self.model.mask_epsilon,
        ).mT
        first = names.index(self.stems[0])
        if list(names[first : first + len(self.stems)]) == list(self.stems):
            return masks[first : first + len(self.stems)]
        return torch.stack([masks[names.index(name)] for name in self.stems])

    def _peak(self, magnitude: Tensor) -> Tensor:
        """What the model's magnitudes are divided by; a silent patch or song stays silent."""
        peak = self.peak if self.model.normalisation == "song" else magnitude.amax((1, 2, 3), keepdim=True)
        assert peak is not None, "a model that is normalised by the song's maximum needs that"
        return peak.clamp(min=torch.finfo(peak.dtype).tiny)

    def _gains(self, masks: Tensor) -> Tensor:
        """masks [..., frames, bins] -> one gain a frame for all that the network does not see above its band."""
        if self.config.mask_extension == "zeros":
            return masks.new_zeros(masks.shape[:-1])
        bins = masks.shape[-1]
        averaged = bins if self.config.mask_extension == "average" else max(1, round(UPPER_BAND * bins))
        return masks[..., bins - averaged :].mean(-1)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The parts as one tensor: a copy, but of one part alone."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """On a GPU: no TF32 (10-bit mantissas), which cuDNN would take for float32, and the same algorithm every time."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
