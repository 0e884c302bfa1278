"""The U-Net's forward pass in training, through the kernels: from planes to blocks of channels, and back at the end.

It does what `UNet.forward` does in plain PyTorch, and updates the norms' running statistics as PyTorch does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .dropout import SeededDropout
from .ops import has_matrix_products, kernels_enabled, training

if TYPE_CHECKING:
    from .config import UNetConfig
    from .unet import DecoderBlock, UNet


class TogetherNorm(nn.BatchNorm2d, training.Together):
    """A norm whose statistics, in training, are those of several batches."""


def serves(network: UNet, magnitude: Tensor) -> bool:
    """Whether the kernels can train this network on these magnitudes: in float32, or under autocast where they are
    fast in its numbers, all of it as it was made.

    Not what others put into it, a dropout of theirs or hooks; and not a frozen block.
    """
    return (
        not torch.compiler.is_compiling()
        and network.training
        and magnitude.numel() > 0
        and magnitude.device == network.device
        and magnitude.dtype == network.dtype == torch.float32
        and suits(network.config)
        and _element_of_maps(magnitude.device) is not None
        and kernels_enabled()
        and all(_as_made(module) for module in network.modules())
        and all(type(block.dropout) is SeededDropout for block in network.decoder_blocks)
    )


def _element_of_maps(device: torch.device) -> torch.dtype | None:
    """Of the maps between the kernels, if there are any for the device: as autocast wants."""
    if device.type not in ("cpu", "cuda"):
        return None
    if not torch.is_autocast_enabled(device.type):
        return torch.float32
    wanted = torch.get_autocast_dtype(device.type)
    return wanted if computes(device, wanted) else None


def computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether training in such numbers is for the kernels. On a CPU, bfloat16 is where it has matrix products."""
    if dtype == torch.float32 or device.type == "cuda":
        return True
    return dtype == torch.bfloat16 and has_matrix_products()


def _as_made(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        ours = type(module) is nn.BatchNorm2d or isinstance(module, TogetherNorm)
        if not (ours and module.training and module.momentum is not None):
            return False
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def suits(config: UNetConfig) -> bool:
    """Whether there are kernels for the training of such networks."""
    return config.upsampling == "transposed" and config.input_channels < training.BLOCK


def forward(network: UNet, magnitude: Tensor) -> Tensor:
    """The mask; see `UNet.forward`."""
    alignment, raw_skips = network.config.alignment, network.config.skips == "raw"
    element = _element_of_maps(magnitude.device)
    skips = []
    x = _Map(magnitude)
    for encoder_block in network.encoder_blocks:
        conv, norm = encoder_block.conv, encoder_block.norm
        raw, statistics = training.conv_for_norm(
            x.values, conv.weight, conv.bias, alignment, None if norm is None else 1.0,
            through=x.through, element=element,
        )  # fmt: skip
        x = _Map(raw)
        if norm is not None:
            x = _normalised(norm, raw, statistics, slope=encoder_block.leaky_slope)
        skips.append((_Map(raw) if raw_skips else x, conv.out_channels))
    x, _ = skips.pop()
    skip: _Map | None = None
    skip_channels = 0
    *others, last = network.decoder_blocks
    for decoder_block in others:
        inner_slope, slope = (1.0, 0.0) if decoder_block.norm_first else (0.0, 1.0)
        raw, statistics = _upsampled(decoder_block, alignment, x, skip, skip_channels, inner_slope)
        x = _finished(decoder_block, raw, statistics, inner_slope, slope)
        skip, skip_channels = skips.pop()
    planes, _ = _upsampled(last, alignment, x, skip, skip_channels, None)
    return torch.sigmoid(_head(network.head, last.finish(planes)))


class _Map(NamedTuple):
    values: Tensor
    through: training.Through | None = None


def _upsampled(
    block: DecoderBlock, alignment: str, x: _Map, skip: _Map | None, skip_channels: int, inner_slope: float | None
) -> tuple[Tensor, Tensor]:
    """The block's convolution, to planes if no norm follows."""
    skip_values, skip_through = skip or (None, None)
    to_planes = inner_slope is None
    return training.upconv_for_norm(
        x.values, skip_values, skip_channels, block.conv.weight, block.conv.bias, to_planes, alignment, inner_slope,
        through=x.through, skip_through=skip_through,
    )  # fmt: skip


def _head(head: nn.Module, x: Tensor) -> Tensor:
    """The last layer before the sigmoid, if there is one: PyTorch's own on a GPU."""
    if isinstance(head, nn.Conv2d) and x.device.type == "cpu":
        return training.head(x, head.weight, head.bias)
    logits: Tensor = head(x)
    return logits


def _finished(block: DecoderBlock, x: Tensor, statistics: Tensor, inner_slope: float, slope: float) -> _Map:
    """Norm, ReLU and dropout of a decoder block."""
    assert block.norm is not None
    seeds, dropout = None, 0.0
    if block.dropout.training:
        dropout = block.dropout.probability
        seeds = block.dropout.seeds_for(x) if dropout else None
    return _normalised(
        block.norm, x, statistics, inner_slope=inner_slope, slope=slope, seeds=seeds, dropout=dropout
    )  # fmt: skip


def _normalised(
    norm: nn.BatchNorm2d,
    x: Tensor,
    statistics: Tensor,
    *,
    inner_slope: float = 1.0,
    slope: float = 1.0,
    seeds: Tensor | None = None,
    dropout: float = 0.0,
) -> _Map:
    together = norm if isinstance(norm, TogetherNorm) else None
    if together is None and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"batch norm in training needs more than one value a channel, got a map of {list(x.shape)}")
    y, through, mean, variance, values = training.norm(
        x, norm.weight, norm.bias, norm.eps, inner_slope, slope, seeds, dropout, together,
        statistics=statistics, on_load=x.device.type in training.GPUS,
    )  # fmt: skip
    assert norm.momentum is not None
    with torch.no_grad():
        for running, new in ((norm.running_mean, mean), (norm.running_var, variance * (values / (values - 1)))):
            if running is not None:
                running.mul_(1 - norm.momentum).add_(new, alpha=norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    return _Map(y, through)
