"""The differentiable ops that the rest of pyunetsep calls.

Each runs as a compiled kernel where there is one, and in plain PyTorch otherwise, or everywhere with
`PYUNETSEP_KERNELS=0` in the environment. Masks and overlap-add have kernels for float32 and float64 on CPU and CUDA,
the Fourier transforms for float32 on both, the U-Net's blocks for float32 on the CPU.
"""

import torch
from torch import Tensor

from . import kernels, reference
from .blocks import decoder_block, dilated_head, encoder_block, mask_block
from .checks import (
    check_alike,
    check_band,
    check_float_tensor,
    check_hop_length,
    check_positive,
    check_real_tensor,
    check_tensor,
    check_window,
    shape,
)
from .kernels import build_info, has_matrix_products, kernels_enabled

__all__ = [
    "ratio_mask",
    "overlap_add",
    "stft",
    "magnitudes",
    "masked_istft",
    "mask_wave",
    "encoder_block",
    "decoder_block",
    "mask_block",
    "dilated_head",
    "build_info",
    "has_matrix_products",
    "kernels_enabled",
]


def ratio_mask(
    magnitudes: Tensor, mixture: Tensor | None = None, *, power: float = 2.0, epsilon: float = 1e-10
) -> Tensor:
    """Soft masks: each stem's share of the whole at each point, with magnitudes raised to `power`.

        mask_s = (e_s^p + epsilon / S') / (sum_s e_s^p + rest^p + epsilon)

    Without `mixture` the stems are the whole (rest = 0, S' = S) and the masks sum to 1. With it, what the stems leave
    of the mixture, rest = max(mixture - sum_s e_s, 0), plays one more stem (S' = S + 1) whose mask is not returned: so
    one stem e = m |X| with power 1 gives back m.

    Args:
        magnitudes: [stems, ...], not negative, linear (not decibel); any float dtype.
        mixture: [...], the magnitudes of the mixture, dtype and device of `magnitudes`.
        power: above 0; 2 divides energy (a Wiener filter), 1 magnitude.
        epsilon: above 0, in units of magnitude^power; where all is silent each stem gets 1 / S'.
    Returns:
        [stems, ...], between 0 and 1, dtype and device of `magnitudes`.
    Raises:
        TypeError: a tensor that is none or not of a float dtype, dtypes that differ, a number that is none.
        ValueError: shapes or devices that do not fit, no stem, `power` or `epsilon` not above 0.
    Source: Hennequin et al., Spleeter, JOSS 2020 (its `separation_exponent` is `power`); Jansson et al., ISMIR 2017.
    """
    check_float_tensor("magnitudes", magnitudes)
    if magnitudes.ndim < 1 or magnitudes.shape[0] < 1:
        raise ValueError(f"magnitudes: got shape {shape(magnitudes)}, wants [stems, ...] with at least one stem")
    if mixture is not None:
        check_alike("mixture", mixture, "magnitudes", magnitudes)
        if mixture.shape != magnitudes.shape[1:]:
            wanted = list(magnitudes.shape[1:])
            raise ValueError(f"mixture: got shape {shape(mixture)}, wants that of one stem, {wanted}")
    check_positive("power", power)
    check_positive("epsilon", epsilon)
    op = kernels.ratio_mask if kernels_enabled() and kernels.covers(magnitudes) else reference.ratio_mask
    return op(magnitudes, mixture, power, epsilon)


def overlap_add(frames: Tensor, window: Tensor, hop_length: int) -> Tensor:
    """Weight overlapping frames and add them up: the last step of an inverse short-time Fourier transform.

        wave[t] = sum_k window[t - k hop_length] frames[k, t - k hop_length]

    The result has the same bits each time, on every device: samples are gathered, not scattered.

    Args:
        frames: [..., frames, n_fft], any float dtype.
        window: [n_fft], the synthesis window with any normalisation folded in, dtype and device of `frames`.
        hop_length: samples from one frame to the next, 1 to n_fft.
    Returns:
        [..., (frames - 1) * hop_length + n_fft], dtype and device of `frames`; [..., 0] if there are no frames.
    Raises:
        TypeError: a tensor that is none or not of a float dtype, dtypes that differ, `hop_length` not an int.
        ValueError: shapes or devices that do not fit, `hop_length` out of range.
    Source: Griffin and Lim, IEEE TASSP 32(2), 1984, section II.
    """
    check_float_tensor("frames", frames)
    if frames.ndim < 2:
        raise ValueError(f"frames: got shape {shape(frames)}, wants [..., frames, n_fft]")
    check_alike("window", window, "frames", frames)
    n_fft = frames.shape[-1]
    if window.shape != (n_fft,):
        raise ValueError(f"window: got shape {shape(window)}, wants [{n_fft}], the length of a frame")
    check_hop_length(hop_length, n_fft)
    op = kernels.overlap_add if kernels_enabled() and kernels.covers(frames) else reference.overlap_add
    return op(frames, window, hop_length)


def stft(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> tuple[Tensor, Tensor]:
    """Short-time Fourier transform, with the magnitudes of a band of it: frames, weighted and transformed.

        spectrum[k, b] = sum_t window[t] wave[k hop_length + t] exp(-2 pi i b t / n_fft)

    The kernels are for float32 and n_fft a power of two from 32 to 8192.

    Args:
        wave: [..., samples], float32 or float64.
        window: [n_fft], dtype and device of `wave`.
        hop_length: samples from one frame to the next, 1 to n_fft.
        first_bin: of the band, from 0.
        bins: of the band, at least 1.
    Returns:
        spectrum [..., frames, n_fft // 2 + 1], complex, of the frames that lie wholly in `wave`, and
        magnitude [..., frames, bins] of its bins `first_bin` to `first_bin + bins`, dtype and device of `wave`.
    Raises:
        TypeError: a tensor that is none or of another dtype, dtypes that differ, a number that is not an int.
        ValueError: shapes or devices that do not fit, `hop_length` or the band out of range.
    Source: Griffin and Lim, IEEE TASSP 32(2), 1984, section II.
    """
    _check_frames(wave, window, hop_length)
    check_band(first_bin, bins, window.shape[0] // 2 + 1)
    op = kernels.stft if kernels_enabled() and kernels.transforms(window) else reference.stft
    return op(wave, window, hop_length, first_bin, bins)


def magnitudes(wave: Tensor, window: Tensor, hop_length: int, first_bin: int, bins: int) -> Tensor:
    """The magnitudes alone that `stft` returns, with the same arguments and errors.

    On a GPU that saves most of the time: the spectrum is the larger part of what is written. See `mask_wave`.
    """
    _check_frames(wave, window, hop_length)
    check_band(first_bin, bins, window.shape[0] // 2 + 1)
    op = kernels.magnitudes if kernels_enabled() and kernels.transforms(window) else reference.magnitudes
    return op(wave, window, hop_length, first_bin, bins)


def masked_istft(
    spectrum: Tensor, mask: Tensor, gain: Tensor, window: Tensor, hop_length: int, first_bin: int
) -> Tensor:
    """Inverse short-time Fourier transform of a masked spectrum: the way from masks to waves.

        wave[t] = sum_k window[t - k hop_length] frame[k, t - k hop_length]

    with frame[k] the inverse transform of spectrum[k] times mask[k]. The mask is for a band: bins below it take its
    first value, bins above it the frame's gain, but a single one (the dropped Nyquist) takes the mask's last value.

    The result has the same bits each time, for any number of threads. The kernels are for float32 and n_fft a power of
    two from 32 to 8192.

    Args:
        spectrum: [..., frames, n_fft // 2 + 1], complex64 or complex128. Never changed.
        mask: [..., frames, bins], or [stems, ..., frames, bins] for several at once, a float dtype of the same width.
        gain: mask's shape without bins, dtype of `mask`.
        window: [n_fft], the synthesis window with any normalisation folded in, dtype of `mask`.
        hop_length: samples from one frame to the next, 1 to n_fft.
        first_bin: of the mask's band, from 0.
    Returns:
        [..., (frames - 1) * hop_length + n_fft], with mask's leading dimensions, dtype and device; [..., 0] if there
        are no frames.
    Raises:
        TypeError: a tensor that is none or of another dtype, dtypes that do not fit, a number that is not an int.
        ValueError: shapes or devices that do not fit, `hop_length` or the band out of range.
    Source: Griffin and Lim, IEEE TASSP 32(2), 1984, section II.
    """
    check_real_tensor("mask", mask)
    check_tensor("spectrum", spectrum)
    complex_dtype = torch.complex64 if mask.dtype == torch.float32 else torch.complex128
    if spectrum.dtype != complex_dtype:
        raise TypeError(f"spectrum: got dtype {spectrum.dtype}, wants {complex_dtype}, with mask of {mask.dtype}")
    if spectrum.device != mask.device:
        raise ValueError(f"spectrum: got device {spectrum.device}, wants that of mask, {mask.device}")
    check_alike("gain", gain, "mask", mask)
    check_alike("window", window, "mask", mask)
    check_window(window)
    if spectrum.ndim < 2 or spectrum.shape[-1] != window.shape[0] // 2 + 1:
        wanted_bins = window.shape[0] // 2 + 1
        raise ValueError(f"spectrum: got shape {shape(spectrum)}, wants [..., frames, {wanted_bins}], n_fft // 2 + 1")
    if mask.ndim - spectrum.ndim not in (0, 1) or mask.shape[-spectrum.ndim : -1] != spectrum.shape[:-1]:
        wanted_mask = f"that of spectrum, {shape(spectrum)}, but for the bins and stems in front"
        raise ValueError(f"mask: got shape {shape(mask)}, wants {wanted_mask}")
    _check_gain(gain, mask)
    check_hop_length(hop_length, window.shape[0])
    check_band(first_bin, mask.shape[-1], spectrum.shape[-1])
    if kernels_enabled() and kernels.transforms(window):
        return kernels.masked_istft(spectrum, mask, gain, window, hop_length, first_bin)
    frames = reference.masked_frames(spectrum, mask, gain, window.shape[0], first_bin)
    return overlap_add(frames, window, hop_length)


def mask_wave(
    wave: Tensor,
    mask: Tensor,
    gain: Tensor,
    window: Tensor,
    synthesis_window: Tensor,
    hop_length: int,
    first_bin: int,
) -> Tensor:
    """Let through what a mask says of a wave: `stft` with `window`, then `masked_istft` with `synthesis_window`.

    On a GPU the spectrum is never stored: it takes less time to make it once more than to write and read it. So
    `magnitudes` and `mask_wave` are faster there than `stft` and `masked_istft`; on a CPU it is the other way round.

    Args:
        wave: [..., samples], float32 or float64. Never changed.
        mask: [..., frames, bins], or [stems, ..., frames, bins] for several at once, dtype and device of `wave`, for
            the first `frames` frames of the wave. Extended beyond its band as in `masked_istft`.
        gain: mask's shape without bins, dtype of `wave`.
        window: [n_fft], for the way to the spectrum, dtype of `wave`.
        synthesis_window: [n_fft], for the way back, with any normalisation folded in, dtype of `wave`.
        hop_length: samples from one frame to the next, 1 to n_fft.
        first_bin: of the mask's band, from 0.
    Returns:
        [..., (frames - 1) * hop_length + n_fft], with mask's leading dimensions, dtype and device; [..., 0] if there
        are no frames.
    Raises:
        TypeError: a tensor that is none or of another dtype, dtypes that differ, a number that is not an int.
        ValueError: shapes or devices that do not fit, `hop_length` or the band out of range.
    Source: Griffin and Lim, IEEE TASSP 32(2), 1984, section II.
    """
    _check_frames(wave, window, hop_length)
    for name, tensor in (("mask", mask), ("gain", gain), ("synthesis_window", synthesis_window)):
        check_alike(name, tensor, "wave", wave)
    if synthesis_window.shape != window.shape:
        got, wanted = shape(synthesis_window), shape(window)
        raise ValueError(f"synthesis_window: got shape {got}, wants that of window, {wanted}")
    if mask.ndim - wave.ndim not in (1, 2) or mask.shape[-wave.ndim - 1 : -2] != wave.shape[:-1]:
        wanted_mask = f"that of wave, {shape(wave)}, but for frames and bins instead of samples and stems in front"
        raise ValueError(f"mask: got shape {shape(mask)}, wants {wanted_mask}")
    _check_gain(gain, mask)
    check_band(first_bin, mask.shape[-1], window.shape[0] // 2 + 1)
    frames = max(0, (wave.shape[-1] - window.shape[0]) // hop_length + 1)
    if mask.shape[-2] > frames:
        raise ValueError(f"mask: got {mask.shape[-2]} frames, wants at most those of the wave, {frames}")
    if kernels_enabled() and kernels.transforms(window):
        return kernels.mask_wave(wave, mask, gain, window, synthesis_window, hop_length, first_bin)
    spectrum = reference.first_frames(wave, mask.shape[-2], window, hop_length)
    return masked_istft(spectrum, mask, gain, synthesis_window, hop_length, first_bin)


def _check_frames(wave: Tensor, window: Tensor, hop_length: int) -> None:
    check_real_tensor("wave", wave)
    if wave.ndim < 1:
        raise ValueError(f"wave: got shape {shape(wave)}, wants [..., samples]")
    check_alike("window", window, "wave", wave)
    check_window(window)
    check_hop_length(hop_length, window.shape[0])


def _check_gain(gain: Tensor, mask: Tensor) -> None:
    if gain.shape != mask.shape[:-1]:
        raise ValueError(f"gain: got shape {shape(gain)}, wants that of mask without bins, {shape(mask)[:-1]}")
