"""A model's U-Nets made ready for a GPU: weights packed once, all networks of a call in the same launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .ops import kernels
from .unet import UNet
from .unet_plan import Packed, described

PRECISIONS = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
LARGEST_MAGNITUDE = 4096.0  # four times that of a full-scale sine in 4096 samples; maps grow to some times the input


class CudaPlan(Packed):
    """Inference of networks of one shape, one a stem, on a GPU.

    Maps and weights are of `precision`, sums are always float32, and so are magnitudes and masks. float16 keeps 11
    bits, bfloat16 8 at the same speed, but a float's range. The plan holds a copy of the weights as they were, batch
    norm (with its running statistics) folded in where that is exact. Two runs give the same bits. It always runs the
    compiled kernels, also with `PYUNETSEP_KERNELS=0`, which makes a `Separator` do without plans.
    """

    def __init__(
        self, networks: Mapping[str, UNet], *, device: torch.device, precision: torch.dtype = torch.float16
    ) -> None:
        """
        Raises:
            ValueError: networks of different shapes, another precision, or a device that is none of CUDA's.
            RuntimeError: the device cannot be used.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS.values())}, got {precision}")
        if device.type != "cuda":
            raise ValueError(f"device must be a CUDA device, got {device}")
        self.stems = tuple(networks)
        self.precision = precision
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._plan = kernels.CudaPlan(
            [described(network) for network in networks.values()], PRECISIONS[precision], self.device.index
        )

    def estimate(
        self, magnitude: Tensor, stems: Sequence[str] | None = None, *, masked: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """Estimates stems' soft masks, or with `masked` their magnitudes: mask times mixture.

        Args:
            magnitude: [batch, input_channels, bins, frames] of the mixture, float32 on the device; bins and frames are
                multiples of the networks' stride. Read in place if the bins of a frame are neighbours in memory.
            stems: some of `self.stems`, in that order; None is all.
            out: where to write the result, the bins of a frame being neighbours in memory.
        Returns:
            [stems, batch, input_channels, bins, frames]: `out`, or a new tensor.
        Raises:
            TypeError, ValueError: dtype, device, shape or strides are others, no such stem.
            torch.OutOfMemoryError: the device has no room for the networks' maps.
        """
        if magnitude.ndim != 4:
            raise ValueError(f"magnitude: got shape {list(magnitude.shape)}, wants [batch, channels, bins, frames]")
        names = self.stems if stems is None else tuple(stems)
        first = self.stems.index(names[0]) if names and names[0] in self.stems else 0
        if not names or self.stems[first : first + len(names)] != names:
            return self._apart(magnitude, names, masked=masked, out=out)
        result = self._plan.run(magnitude.mT, first, len(names), masked, None if out is None else out.mT)
        return result.mT

    def _apart(self, magnitude: Tensor, names: tuple[str, ...], *, masked: bool, out: Tensor | None) -> Tensor:
        """Stems that are no neighbours, one after the other."""
        if not names or not set(names) <= set(self.stems):
            raise ValueError(f"stems: got {list(names)}, wants some of {', '.join(self.stems)}")
        if out is None:
            out = magnitude.new_empty(len(names), *magnitude.mT.shape).mT
        for name, one in zip(names, out.split(1), strict=True):
            self.estimate(magnitude, [name], masked=masked, out=one)
        return out

    @property
    def largest_magnitude(self) -> float | None:
        """In halves, maps grow to some times the input and end at 65504; louder patches must be turned down."""
        return LARGEST_MAGNITUDE if self.precision == torch.float16 else None

    @property
    def dtype(self) -> torch.dtype:
        """Of magnitudes and masks."""
        return torch.float32

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return self._plan.packed_bytes
