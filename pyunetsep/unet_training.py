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
    from .unet import UNet


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
        bias, cancelled = _biases(conv, norm is not None and not raw_skips)
        raw, statistics = training.conv_for_norm(
            x.values,
            conv.weight,
            bias,
            alignment,
            None if norm is None else 1.0,
            through=x.through,
            element=element,
        )
        x = _Map(raw)
        if norm is not None:
            x = _normalised(norm, raw, statistics, slope=encoder_block.leaky_slope, cancelled=cancelled)
        skips.append((_Map(raw) if raw_skips else x, conv.out_channels))
    x, _ = skips.pop()
    skip: _Map | None = None
    skip_channels = 0
    *others, last = network.decoder_blocks
    for decoder_block in others:
        inner_slope, slope = (1.0, 0.0) if decoder_block.norm_first else (0.0, 1.0)
        bias, cancelled = _biases(decoder_block.conv, decoder_block.norm_first)
        raw, statistics = training.upconv_for_norm(
            x.values,
            skip and skip.values,
            skip_channels,
            decoder_block.conv.weight,
            bias,
            alignment,
            inner_slope,
            through=x.through,
            skip_through=skip and skip.through,
        )
        seeds, dropout = _dropout(decoder_block.dropout, raw)
        assert decoder_block.norm is not None
        x = _normalised(
            decoder_block.norm,
            raw,
            statistics,
            inner_slope=inner_slope,
            slope=slope,
            seeds=seeds,
            dropout=dropout,
            cancelled=cancelled,
        )
        skip, skip_channels = skips.pop()
    plain = last.norm is None and not last.dropout.probability and isinstance(network.head, nn.Identity)
    planes = training.upconv(
        x.values,
        skip and skip.values,
        skip_channels,
        last.conv.weight,
        last.conv.bias,
        True,
        alignment,
        through=x.through,
        skip_through=skip and skip.through,
        sigmoid=plain,
    )
    return planes if plain else torch.sigmoid(_head(network.head, last.finish(planes)))


class _Map(NamedTuple):
    values: Tensor
    through: training.Through | None = None


def _head(head: nn.Module, x: Tensor) -> Tensor:
    """The last layer before the sigmoid, if there is one: PyTorch's own on a GPU."""
    if isinstance(head, nn.Conv2d) and x.device.type == "cpu":
        return training.head(x, head.weight, head.bias)
    logits: Tensor = head(x)
    return logits


def _biases(conv: nn.Conv2d | nn.ConvTranspose2d, cancels: bool) -> tuple[Tensor | None, Tensor | None]:
    """What the convolution adds, and that again for the norm behind it if this cancels it and nothing else reads it."""
    return (None if conv.bias is None else conv.bias.detach(), conv.bias) if cancels else (conv.bias, None)


def _dropout(layer: SeededDropout, x: Tensor) -> tuple[Tensor | None, float]:
    """The examples' seeds and the probability, where something is dropped."""
    if not layer.training or not layer.probability:
        return None, 0.0
    return layer.seeds_for(x), layer.probability


def _normalised(
    norm: nn.BatchNorm2d,
    x: Tensor,
    statistics: Tensor,
    *,
    inner_slope: float = 1.0,
    slope: float = 1.0,
    seeds: Tensor | None = None,
    dropout: float = 0.0,
    cancelled: Tensor | None = None,
) -> _Map:
    together = norm if isinstance(norm, TogetherNorm) else None
    if together is None and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"batch norm in training needs more than one value a channel, got a map of {list(x.shape)}")
    y, through, mean, variance, values = training.norm(
        x,
        norm.weight,
        norm.bias,
        norm.eps,
        inner_slope,
        slope,
        seeds,
        dropout,
        together,
        statistics=statistics,
        on_load=x.device.type in training.GPUS,
        cancelled=cancelled,
    )
    assert norm.momentum is not None
    with torch.no_grad():
        for running, new in ((norm.running_mean, mean), (norm.running_var, variance * (values / (values - 1)))):
            if running is not None:
                running.mul_(1 - norm.momentum).add_(new, alpha=norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    return _Map(y, through)
