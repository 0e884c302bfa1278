"""How wrong a mask is: one number for a batch; the louder an example, the more it counts, if the
model does not normalise patches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import kernels_enabled, training
from .examples import Batch

Loss = Callable[[Tensor, Batch, str], Tensor]


def magnitude_loss(mask: Tensor, batch: Batch, stem: str) -> Tensor:
    """Mean of | mask |X| - |S| |: the paper's.

    Source: Jansson et al., ISMIR 2017, section 2.
    """
    target = batch.magnitudes[stem]
    if mask.device.type in ("cpu", "cuda") and mask.dtype == torch.float32 and kernels_enabled():
        return training.masked_l1(mask, batch.magnitude, target)
    return (mask * batch.magnitude - target).abs().mean()


def complex_loss(mask: Tensor, batch: Batch, stem: str) -> Tensor:
    """Mean of | mask X - S |, the distance in the complex plane: where the phase is wrong the mask is smaller.

    Source: Erdogan et al., "Phase-sensitive and recognition-boosted speech separation", ICASSP 2015, for the idea.
    """
    return (mask * batch.mixture - batch.stems[stem]).abs().mean()


LOSSES: dict[str, Loss] = {"magnitude": magnitude_loss, "complex": complex_loss}
