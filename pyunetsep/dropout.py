"""Dropout whose pattern follows from the example alone, whichever process or device drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .unet import UNet

MASK_64 = 2**64 - 1

# Multipliers and shifts of Wang and Ettinger's integer hash "triple32", as signed numbers: torch's integers wrap.
ROUNDS = ((17, -312814405), (11, -1404298415), (15, 830770091))


class SeededDropout(nn.Module):
    """Drops each element with a probability, by a hash of its example's seed and its place in the example.

    The seeds are drawn anew for each call, from torch's generator, unless `seeds` are set.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.seeds: Tensor | None = None  # [batch], int32

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        places = _mixed(torch.arange(x[0].numel(), dtype=torch.int32, device=x.device), *ROUNDS[0])
        number = places[None] + self.seeds_for(x)[:, None]
        for shift, factor in ROUNDS[1:]:
            number = _mixed(number, shift, factor)
        kept = number >= round(self.probability * 2**32) - 2**31
        return x * (kept.view(x.shape) * (1.0 / (1.0 - self.probability))).to(x.dtype)

    def seeds_for(self, x: Tensor) -> Tensor:
        """The seeds of a batch's examples."""
        if self.seeds is None:
            return torch.randint(-(2**31), 2**31, (len(x),), dtype=torch.int32, device=x.device)
        assert len(self.seeds) == len(x), "one seed an example"
        return self.seeds

    def extra_repr(self) -> str:
        return f"{self.probability}"


def _mixed(number: Tensor, shift: int, factor: int) -> Tensor:
    number = number ^ ((number >> shift) & ((1 << (32 - shift)) - 1))  # without the sign's copies
    return number.mul_(factor)


def dropping_layers(network: UNet) -> list[SeededDropout]:
    """From the input to the output."""
    return [block.dropout for block in network.decoder_blocks if block.dropout.probability > 0]


def seeds_of(layers: int, examples: Sequence[tuple[int, ...]]) -> Tensor:
    """The layers' seeds for a batch, which follow from what identifies its examples: [layers, batch]."""
    seeds = [[hashed(*example, layer) for example in examples] for layer in range(layers)]
    return torch.tensor(seeds, dtype=torch.int32).view(layers, len(examples))


def set_seeds(layers: list[SeededDropout], seeds: Tensor) -> None:
    """Gives each layer its own."""
    for layer, of_batch in zip(layers, seeds, strict=True):
        layer.seeds = of_batch


def hashed(*numbers: int) -> int:
    """31 bits in which each bit of each number has a part: rounds of Steele et al.'s "splitmix64"."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
        state ^= state >> 31
    return state >> 33
