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
    """

    def __init__(
        self, config: SpectrogramConfig, *, grids: int = 1, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        if config.hop_length % grids:
            raise ValueError(f"grids must divide the hop of {config.hop_length} samples, got {grids}")
        self.n_fft = config.n_fft
        self.hop_length = config.hop_length // grids
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

    def analyse(self, wave: Tensor) -> Tensor:
        """[..., samples] -> spectrum [..., n_fft // 2 + 1, frames], of the frames that lie wholly in `wave`."""
        frames = wave.unfold(-1, self.n_fft, self.hop_length) * self.window
        return torch.fft.rfft(frames).transpose(-1, -2)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """[..., n_fft // 2 + 1, frames] -> [..., span(frames)], the least-squares inverse where all frames overlap."""
        frames = torch.fft.irfft(spectrum.transpose(-1, -2), self.n_fft)
        return ops.overlap_add(frames, self.synthesis_window, self.hop_length)


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
    """[..., frames] -> [patches, ..., patch_frames], a patch every `stride` frames; a view."""
    return spectra.unfold(-1, patch_frames, stride).movedim(-2, 0)


def join_patches(patches: Tensor, stride: int, faded: Tensor | None, *, last: bool) -> tuple[Tensor, Tensor | None]:
    """Cross-fades overlapping patches, linearly, into one run of frames.

    Args:
        patches: [patches, ..., patch_frames], one every `stride` frames.
        faded: [..., patch_frames - stride], what the previous call's last patch gives to this call's first frames;
            None at the start of a song, which is not faded in.
        last: the song ends here, so the last patch is not faded out.
    Returns:
        [..., frames] and the next call's `faded`. frames = patches * stride, and the overlap if `last`.
    """
    count, overlap = patches.shape[0], patches.shape[-1] - stride
    if overlap == 0:
        return patches.movedim(0, -2).flatten(-2), None
    joined = patches.new_zeros(*patches.shape[1:-1], count * stride + overlap)
    rise = (torch.arange(overlap, device=patches.device, dtype=patches.dtype) + 0.5) / overlap
    if faded is not None:
        joined[..., :overlap] = faded
    for i, patch in enumerate(patches):
        start = i * stride
        first, final = faded is None and i == 0, last and i == count - 1
        joined[..., start : start + overlap] += patch[..., :overlap] * (1.0 if first else rise)
        joined[..., start + overlap : start + stride] = patch[..., overlap:stride]
        joined[..., start + stride : start + stride + overlap] = patch[..., stride:] * (1.0 if final else 1.0 - rise)
    if last:
        return joined, None
    return joined[..., : count * stride], joined[..., count * stride :].clone()
