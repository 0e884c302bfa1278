"""The ops in plain PyTorch: their definition, and what runs where the kernels do not.

Any float dtype, any device; in float64 these are the truth that the kernels are tested against. The arguments are
those of `pyunetsep.ops`, which has checked them.
"""

import torch
from torch import Tensor


def ratio_mask(magnitudes: Tensor, mixture: Tensor | None, power: float, epsilon: float) -> Tensor:
    """See `pyunetsep.ops.ratio_mask`."""
    weights = magnitudes**power
    total = weights.sum(0)
    parts = len(magnitudes)
    if mixture is not None:
        total = total + torch.relu(mixture - magnitudes.sum(0)) ** power
        parts += 1
    return (weights + epsilon / parts) / (total + epsilon)


def stft(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> tuple[Tensor, Tensor]:
    """See `pyunetsep.ops.stft`."""
    n_fft = len(window)
    if wave.shape[-1] < n_fft:
        frames = wave.new_zeros((*wave.shape[:-1], 0, n_fft)) * window
    else:
        frames = wave.unfold(-1, n_fft, hop_length) * window
    # MKL refuses to transform nothing
    spectrum = torch.fft.rfft(frames) if frames.numel() else torch.complex(frames, frames)[..., : n_fft // 2 + 1]
    return spectrum, spectrum[..., first_bin : first_bin + bins].abs()


def masked_istft(
    spectrum: Tensor, mask: Tensor, gain: Tensor, window: Tensor, hop_length: int, first_bin: int
) -> Tensor:
    """See `pyunetsep.ops.masked_istft`."""
    return overlap_add(masked_frames(spectrum, mask, gain, len(window), first_bin), window, hop_length)


def masked_frames(spectrum: Tensor, mask: Tensor, gain: Tensor, n_fft: int, first_bin: int) -> Tensor:
    """What `masked_istft` adds up: [..., frames, n_fft]."""
    bins_above = spectrum.shape[-1] - first_bin - mask.shape[-1]
    below = mask[..., :1].expand(*gain.shape, first_bin)
    above = (mask[..., -1] if bins_above == 1 else gain).unsqueeze(-1).expand(*gain.shape, bins_above)
    masked = spectrum * torch.cat((below, mask, above), dim=-1)
    if masked.numel() == 0:  # as above
        return masked.real.new_zeros((*masked.shape[:-1], n_fft))
    return torch.fft.irfft(masked, n_fft)


def overlap_add(frames: Tensor, window: Tensor, hop_length: int) -> Tensor:
    """See `pyunetsep.ops.overlap_add`."""
    *rows, frame_count, n_fft = frames.shape
    if frame_count == 0:
        return frames.new_zeros((*rows, 0))
    # Cut each frame into pieces of one hop: piece j of frame k belongs to hop k + j of the wave.
    pieces = -(-n_fft // hop_length)
    padded = torch.nn.functional.pad(frames * window, (0, pieces * hop_length - n_fft))
    hops = frames.new_zeros((*rows, frame_count + pieces - 1, hop_length))
    for j in range(pieces):
        hops[..., j : j + frame_count, :] += padded[..., j * hop_length : (j + 1) * hop_length]
    return hops.flatten(-2)[..., : (frame_count - 1) * hop_length + n_fft]
