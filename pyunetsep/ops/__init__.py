"""The differentiable ops that the rest of pyunetsep calls.

Each runs as a compiled kernel for float32 and float64 on CPU and CUDA, and in plain PyTorch otherwise, or everywhere
with `PYUNETSEP_KERNELS=0` in the environment.
"""

import math

from torch import Tensor

from . import kernels, reference
from .kernels import build_info, kernels_enabled

__all__ = ["ratio_mask", "overlap_add", "build_info", "kernels_enabled"]


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
    _check_float_tensor("magnitudes", magnitudes)
    if magnitudes.ndim < 1 or magnitudes.shape[0] < 1:
        raise ValueError(f"magnitudes: got shape {_shape(magnitudes)}, wants [stems, ...] with at least one stem")
    if mixture is not None:
        _check_alike("mixture", mixture, "magnitudes", magnitudes)
        if mixture.shape != magnitudes.shape[1:]:
            wanted = list(magnitudes.shape[1:])
            raise ValueError(f"mixture: got shape {_shape(mixture)}, wants that of one stem, {wanted}")
    _check_positive("power", power)
    _check_positive("epsilon", epsilon)
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
    _check_float_tensor("frames", frames)
    if frames.ndim < 2:
        raise ValueError(f"frames: got shape {_shape(frames)}, wants [..., frames, n_fft]")
    _check_alike("window", window, "frames", frames)
    n_fft = frames.shape[-1]
    if window.shape != (n_fft,):
        raise ValueError(f"window: got shape {_shape(window)}, wants [{n_fft}], the length of a frame")
    if not isinstance(hop_length, int):
        raise TypeError(f"hop_length: got {type(hop_length).__name__}, wants int")
    if not 1 <= hop_length <= n_fft:
        raise ValueError(f"hop_length: got {hop_length}, wants 1 to n_fft, {n_fft}")
    op = kernels.overlap_add if kernels_enabled() and kernels.covers(frames) else reference.overlap_add
    return op(frames, window, hop_length)


# These checks serve kernels, reference and torch.compile alike. csrc/ops.cpp repeats them, with the same types of
# exception, for callers of torch.ops: a kernel must never see a shape that does not fit.


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _check_float_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, wants a tensor")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wants a float dtype")


def _check_alike(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, wants a tensor")
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wants that of {like_name}, {like.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, wants that of {like_name}, {like.device}")


def _check_positive(name: str, value: float) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, wants a number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value}, wants a finite number above 0")
