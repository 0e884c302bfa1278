"""Wave <-> spectrum on a fixed grid of frames, and spectrum <-> overlapping patches. Knows no network."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .config import SpectrogramConfig


class Spectrogram:
    """Short-time Fourier transform and its inverse.

    The caller puts `n_fft` zeros in front of a song and enough behind it, so that every sample lies in equally many
    frames; what the squared windows add up to then repeats every `hop_length` samples, and dividing the synthesis
    window by it normalises the inverse exactly. At Spleeter's 75 % overlap the sum is the constant 3/2.

    There are two ways to masked waves, with results that differ by rounding alone: `analyse` and `synthesise` keep the
    spectrum in between, which is the faster way on a CPU; `magnitudes` and `filter` make it twice, which on a GPU is
    faster and needs less memory.
    """

    def __init__(
        self, config: SpectrogramConfig, *, grids: int = 1, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        if config.hop_length % grids:
            raise ValueError(f"grids must divide the hop of {config.hop_length} samples, got {grids}")
        self.n_fft = config.n_fft
        self.hop_length = config.hop_length // grids
        self.first_bin, self.bins = config.first_bin, config.bins
        window = torch.hann_window(self.n_fft, periodic=True, dtype=torch.float64)
        squares = torch.zeros(-(-self.n_fft // self.hop_length) * self.hop_length, dtype=torch.float64)
        squares[: self.n_fft] = window**2
        envelope = squares.view(-1, self.hop_length).sum(0)  # what all frames give to a sample, for one hop
        position = torch.arange(self.n_fft) % self.hop_length
        self.window = window.to(device, dtype)
        self.synthesis_window = (window / envelope[position]).to(device, dtype)

    def span(self, frames: int) -> int:
        """Samples that `frames` frames cover."""
        return (frames - 1) * self.hop_length + self.n_fft

    def analyse(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Transforms the frames that lie wholly in `wave`.

        [..., samples] -> spectrum [..., frames, n_fft // 2 + 1], and its magnitude [..., frames, bins] in the network's
        band.
        """
        return ops.stft(wave, self.window, self.hop_length, self.first_bin, self.bins)

    def synthesise(self, spectrum: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
        """Transforms back what masks let through: the least-squares inverse where all frames overlap.

        spectrum [..., frames, n_fft // 2 + 1], mask [stems, ..., frames, bins] of the network's band and gain
        [stems, ..., frames] for what lies above it -> [stems, ..., span(frames)]. Bins below the band take its first
        mask, and a single one above it (the dropped Nyquist) its last.
        """
        return ops.masked_istft(spectrum, mask, gain, self.synthesis_window, self.hop_length, self.first_bin)

    def magnitudes(self, wave: Tensor) -> Tensor:
        """What `analyse` says of the network's band, without the spectrum.

        [..., samples] -> [..., frames, bins]; masks for them go to `filter`, with the wave.
        """
        return ops.magnitudes(wave, self.window, self.hop_length, self.first_bin, self.bins)

    def filter(self, wave: Tensor, mask: Tensor, gain: Tensor) -> Tensor:
        """What masks let through of the first `frames` frames of a wave, which may have more.

        wave [..., samples], mask [stems, ..., frames, bins] and gain [stems, ..., frames], both as in `synthesise` ->
        [stems, ..., span(frames)].
        """
        return ops.mask_wave(wave, mask, gain, self.window, self.synthesis_window, self.hop_length, self.first_bin)


def default_grids(config: SpectrogramConfig) -> int:
    """The fewest shifted grids on which a masked spectrum resynthesises evenly.

    With a hop over a quarter of the Hann window, the overlapping squared windows of one grid swing (at hop 768 of 1024
    by 13.7 dB), and masks that change from frame to frame leave a flutter at the frame rate. Grids shifted by
    hop / grids, each masked by itself and then averaged, are one resynthesis at hop / grids.
    """
    grids = 1
    while config.hop_length % grids or config.hop_length // grids > config.n_fft // 4:
        grids += 1
    return grids


def split_patches(spectra: Tensor, patch_frames: int, stride: int) -> Tensor:
    """[..., frames, grids, bins] -> [patches, ..., patch_frames, grids, bins], one every `stride` frames; a view."""
    return spectra.unfold(-3, patch_frames, stride).movedim(-1, -3).movedim(-4, 0)


def join_patches(patches: Tensor, stride: int, faded: Tensor | None, *, last: bool) -> tuple[Tensor, Tensor | None]:
    """Cross-fades overlapping patches, linearly, into one run of frames.

    Args:
        patches: [patches, ..., patch_frames, grids, bins], one every `stride` frames, which is at least half of them.
            Faded in place; the run may be a view of it.
        faded: [..., patch_frames - stride, grids, bins], what the previous call's last patch gives to this call's first
            frames; None at the start of a song, which is not faded in.
        last: the song ends here, so the last patch is not faded out.
    Returns:
        [..., frames, grids, bins] and the next call's `faded`. frames = patches * stride, and the overlap if `last`.
    """
    overlap = patches.shape[-3] - stride
    fading = None
    if overlap:
        rise = (torch.arange(overlap, device=patches.device, dtype=patches.dtype) + 0.5).div_(overlap)[:, None, None]
        heads, tails = patches[..., :overlap, :, :], patches[..., stride:, :, :]
        if faded is not None:
            heads[0].mul_(rise).add_(faded)
        heads[1:].mul_(rise).addcmul_(tails[:-1], 1.0 - rise)
        fading = None if last else tails[-1] * (1.0 - rise)
    runs = list(patches[..., :stride, :, :])
    if last:
        runs[-1] = patches[-1]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=-3), fading
