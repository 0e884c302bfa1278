"""What the ops check of their arguments.

These checks serve kernels, reference and torch.compile alike. csrc repeats them, with the same types of exception, for
callers of torch.ops: a kernel must never see a shape that does not fit.
"""

import math

import torch
from torch import Tensor


def shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, wants a tensor")


def check_float_tensor(name: str, tensor: Tensor) -> None:
    check_tensor(name, tensor)
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wants a float dtype")


def check_real_tensor(name: str, tensor: Tensor) -> None:
    """Of the dtypes that PyTorch can transform on every device."""
    check_tensor(name, tensor)
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wants float32 or float64")


def check_alike(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.dtype != like.dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, wants that of {like_name}, {like.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, wants that of {like_name}, {like.device}")


def check_positive(name: str, value: float) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, wants a number")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: got {value}, wants a finite number above 0")


def check_window(window: Tensor) -> None:
    if window.ndim != 1 or window.shape[0] < 1:
        raise ValueError(f"window: got shape {shape(window)}, wants [n_fft]")


def check_int(name: str, value: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, wants int")


def check_hop_length(hop_length: int, n_fft: int) -> None:
    check_int("hop_length", hop_length)
    if not 1 <= hop_length <= n_fft:
        raise ValueError(f"hop_length: got {hop_length}, wants 1 to n_fft, {n_fft}")


def check_band(first_bin: int, bins: int, all_bins: int) -> None:
    check_int("first_bin", first_bin)
    check_int("bins", bins)
    if first_bin < 0 or bins < 1 or first_bin + bins > all_bins:
        raise ValueError(f"first_bin, bins: got {first_bin}, {bins}, wants a band of the {all_bins} bins")
