"""A model's networks at work on a device: in which form, how many patches at once, and what songs share of that."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .config import ModelConfig, SeparatorConfig
from .cuda_graph import CudaGraphs, Function, Tensors
from .errors import DeviceError
from .unet import UNet
from .unet_plan import UNetPlan

CPU_BATCH = 2**18  # magnitudes in a network at once
CUDA_BATCH = 2**24


class Estimator(Protocol):
    """All stems' networks in one form: a `CudaPlan`, or `Networks`."""

    @property
    def device(self) -> torch.device:
        """Where magnitudes and masks are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of magnitudes and masks."""

    @property
    def largest_magnitude(self) -> float | None:
        """Louder patches must be turned down; None: there is no limit."""

    def estimate(
        self, magnitude: Tensor, stems: Sequence[str], *, masked: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """[batch, input_channels, bins, frames] -> masks, or `masked` magnitudes, of `stems`: [stems, ...].

        The bins of a frame are neighbours in the memory of `magnitude` and `out`.
        """


class Networks:
    """One network after the other: plans of the CPU's kernels, or PyTorch's modules."""

    largest_magnitude = None

    def __init__(self, networks: Mapping[str, UNet | UNetPlan]) -> None:
        self.networks = networks
        first = next(iter(networks.values()))
        self.device, self.dtype = first.device, first.dtype

    def estimate(
        self, magnitude: Tensor, stems: Sequence[str], *, masked: bool = False, out: Tensor | None = None
    ) -> Tensor:
        if out is None:
            out = magnitude.new_empty(len(stems), *magnitude.mT.shape).mT
        with _full_precision(magnitude.device):
            for name, estimate in zip(stems, out, strict=True):
                self.networks[name].estimate(magnitude, masked=masked, out=estimate)
        return out


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """On a GPU: no TF32 (10-bit mantissas), which cuDNN would take for float32, and the same algorithm every time."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def batch_patches(model: ModelConfig, config: SeparatorConfig, device: torch.device) -> int:
    """How many patches go through a network at once."""
    if config.batch_patches is not None:
        return config.batch_patches
    patch = model.unet.input_channels * model.spectrogram.bins * model.patch_frames
    # A GPU wants enough to be busy; the stems of one batch are copied back while the next one is worked on.
    if device.type == "cuda":
        return min(max(1, CUDA_BATCH // patch), 128)
    # On a CPU more patches share each pass over the weights, but fewer stay in the caches and come back sooner.
    return min(max(1, CPU_BATCH // patch), 4)


class Engine:
    """The networks, and what was learnt about the device: songs of one Separator share it, in any number of threads."""

    def __init__(self, estimator: Estimator, batch: int, *, graphs: bool = False) -> None:
        """`batch`: patches in a network at once; `graphs`: whether segments may run as CUDA graphs."""
        self.estimator, self.batch = estimator, batch
        self.graphs = CudaGraphs(estimator.device) if graphs else None

    def run(self, function: Function, *tensors: Tensor | None, batch: int, last: bool) -> Tensors:
        """function(*tensors, batch=batch, last=last), for what happens to each segment."""
        if self.graphs is None:
            return function(*tensors, batch=batch, last=last)
        return self.graphs(function, *tensors, batch=batch, last=last)

    def halve(self, batch: int) -> None:
        """Call it when there was no memory for `batch` patches at once; from then on there will be at most half.

        Raises:
            DeviceError: less than one patch is nothing.
        """
        if batch == 1:
            raise DeviceError(
                f"{self.estimator.device} is out of memory, with batch_patches down to 1; device='cpu' (--device cpu) "
                "takes none of it"
            )
        self.batch = min(self.batch, batch // 2)
        if self.graphs is not None:
            self.graphs.stop()  # their memory serves the songs better
