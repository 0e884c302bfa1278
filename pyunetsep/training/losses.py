"""How wrong a mask is: one number for a batch; the louder an example, the more it counts, if the
model does not normalise patches."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .examples import Batch

Loss = Callable[[Tensor, Batch, str], Tensor]


def magnitude_loss(mask: Tensor, batch: Batch, stem: str) -> Tensor:
    """Mean of | mask |X| - |S| |: the paper's.

    Source: Jansson et al., ISMIR 2017, section 2.
    """
    return (mask * batch.magnitude - batch.magnitudes[stem]).abs().mean()


def complex_loss(mask: Tensor, batch: Batch, stem: str) -> Tensor:
    """Mean of | mask X - S |, the distance in the complex plane: where the phase is wrong the mask is smaller.

    Source: Erdogan et al., "Phase-sensitive and recognition-boosted speech separation", ICASSP 2015, for the idea.
    """
    return (mask * batch.mixture - batch.stems[stem]).abs().mean()


LOSSES: dict[str, Loss] = {"magnitude": magnitude_loss, "complex": complex_loss}
