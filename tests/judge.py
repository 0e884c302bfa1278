"""The one judge of numbers: a kernel may be as wrong as PyTorch itself, not more."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def judge(result: Tensor, function: Callable[..., Tensor], *arguments: Any, times: float = 2) -> None:
    """Pass if the largest error is at most twice PyTorch's own in the same dtype, plus eps times the largest value.

    The truth is `function(*arguments)` in float64. That has no error of its own to compare with, so where `result` is
    float64 PyTorch's error is what it is in float32, scaled to float64's eps.

    Args:
        result: what the kernel made of the arguments.
        function: the same in plain PyTorch.
        arguments: tensors of the dtype of `result`, and whatever else `function` takes.
        times: instead of twice, for an algorithm whose error is of another size; say why where you ask for it.
    """

    def call(dtype: torch.dtype, rounded_to: torch.dtype) -> Tensor:
        cast = [x.to(rounded_to).to(dtype) if isinstance(x, Tensor) else x for x in arguments]
        return function(*cast).double()

    measured_in = torch.float32 if result.dtype == torch.float64 else result.dtype
    truth = call(torch.float64, result.dtype)
    assert result.shape == truth.shape
    if truth.numel() == 0:
        return
    eps = torch.finfo(result.dtype).eps
    own_error = (call(measured_in, measured_in) - call(torch.float64, measured_in)).abs().max()
    own_error = own_error * eps / torch.finfo(measured_in).eps
    error, bound = (result.double() - truth).abs().max(), times * own_error + eps * truth.abs().max()
    assert error <= bound, f"largest error {error:.3g}, PyTorch's own {own_error:.3g}, bound {bound:.3g}"
