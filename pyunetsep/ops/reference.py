"""The ops in plain PyTorch: their definition, and what runs where the kernels do not.

Any float dtype, any device; in float64 these are the truth that the kernels are tested against. The arguments are
those of `pyunetsep.ops`, which has checked them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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


def magnitudes(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> Tensor:
    """See `pyunetsep.ops.magnitudes`."""
    return stft(wave, window, hop_length, first_bin, bins)[1]


def masked_istft(
    spectrum: Tensor, mask: Tensor, gain: Tensor, window: Tensor, hop_length: int, first_bin: int
) -> Tensor:
    """See `pyunetsep.ops.masked_istft`."""
    return overlap_add(masked_frames(spectrum, mask, gain, len(window), first_bin), window, hop_length)


def mask_wave(
    wave: Tensor,
    mask: Tensor,
    gain: Tensor,
    window: Tensor,
    synthesis_window: Tensor,
    hop_length: int,
    first_bin: int,
) -> Tensor:
    """See `pyunetsep.ops.mask_wave`."""
    spectrum = first_frames(wave, mask.shape[-2], window, hop_length)
    return masked_istft(spectrum, mask, gain, synthesis_window, hop_length, first_bin)


def first_frames(wave: Tensor, frames: int, window: Tensor, hop_length: int) -> Tensor:
    """Their spectrum: [..., frames, n_fft // 2 + 1]."""
    samples = (frames - 1) * hop_length + len(window) if frames else 0
    return stft(wave[..., :samples], window, hop_length, 0, 1)[0]


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
    padded = F.pad(frames * window, (0, pieces * hop_length - n_fft))
    hops = frames.new_zeros((*rows, frame_count + pieces - 1, hop_length))
    for j in range(pieces):
        hops[..., j : j + frame_count, :] += padded[..., j * hop_length : (j + 1) * hop_length]
    return hops.flatten(-2)[..., : (frame_count - 1) * hop_length + n_fft]


def encoder_block(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, slope: float, alignment: str
) -> tuple[Tensor, Tensor]:
    """See `pyunetsep.ops.encoder_block`."""
    if alignment == "tensorflow":
        raw = F.conv2d(F.pad(x, (1, 2, 1, 2)), weight, bias, stride=2)
    else:
        raw = F.conv2d(x, weight, bias, stride=2, padding=2)
    return raw, F.leaky_relu(raw * _of_channels(scale) + _of_channels(shift), slope)


def decoder_block(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    norm_first: bool,
    alignment: str,
    upsampling: str,
) -> Tensor:
    """See `pyunetsep.ops.decoder_block`."""
    y = _upsample(x, skip, weight, bias, alignment, upsampling)
    if norm_first:
        return F.relu(y * _of_channels(scale) + _of_channels(shift))
    return F.relu(y) * _of_channels(scale) + _of_channels(shift)


def mask_block(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor, alignment: str, upsampling: str) -> Tensor:
    """See `pyunetsep.ops.mask_block`."""
    return torch.sigmoid(_upsample(x, skip, weight, bias, alignment, upsampling))


def dilated_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `pyunetsep.ops.dilated_head`."""
    return torch.sigmoid(F.conv2d(x, weight, bias, dilation=2, padding=3))


def _upsample(x: Tensor, skip: Tensor | None, weight: Tensor, bias: Tensor, alignment: str, upsampling: str) -> Tensor:
    x = x if skip is None else torch.cat((skip, x), dim=1)
    if upsampling == "nearest":
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=2)
    if alignment == "tensorflow":
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)[..., :-1, :-1]
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1)


def _of_channels(values: Tensor) -> Tensor:
    """[channels] -> what multiplies [batch, channels, bins, frames]."""
    return values[:, None, None]
