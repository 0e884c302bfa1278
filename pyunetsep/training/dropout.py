"""Dropout whose pattern follows from the example alone, whichever process or device drops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..unet import UNet

# Multipliers and shifts of Wang and Ettinger's integer hash "triple32", as signed numbers: torch's integers wrap.
ROUNDS = ((17, -312814405), (11, -1404298415), (15, 830770091))


class SeededDropout(nn.Module):
    """Drops each element with a probability, by a hash of its example's seed and its place in the example."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.seeds: Tensor | None = None  # [batch], int32: to be set before each call in training

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        assert self.seeds is not None and len(self.seeds) == len(x), "one seed an example"
        places = _mixed(torch.arange(x[0].numel(), dtype=torch.int32, device=x.device), *ROUNDS[0])
        number = places[None] + self.seeds[:, None]
        for shift, factor in ROUNDS[1:]:
            number = _mixed(number, shift, factor)
        kept = number >= round(self.probability * 2**32) - 2**31
        return x * (kept.view(x.shape) * (1.0 / (1.0 - self.probability))).to(x.dtype)


def _mixed(number: Tensor, shift: int, factor: int) -> Tensor:
    number = number ^ ((number >> shift) & ((1 << (32 - shift)) - 1))  # without the sign's copies
    return number.mul_(factor)


def seed_dropout(network: UNet) -> list[SeededDropout]:
    """Puts seeded dropout in the place of the network's own; returns the layers, from the input to the output."""
    layers = []
    for block in network.decoder_blocks:
        if isinstance(block.dropout, nn.Dropout) and block.dropout.p > 0:
            layers.append(SeededDropout(block.dropout.p))
            block.dropout = layers[-1]
    return layers


def set_seeds(layers: list[SeededDropout], seeds: Tensor) -> None:
    """Each layer gets other seeds, that follow from an example's: [batch], int64, any values."""
    for i, layer in enumerate(layers):
        layer.seeds = ((seeds * 0x9E3779B1 + i * 0x85EBCA77) & 0x7FFFFFFF).to(torch.int32)
