"""Starts the paper's network from a trained network of the other family, Spleeter's.

Both have the same convolutions, and differ in what lies between them. That is undone as far as one layer's weights can
undo another's difference:

- a norm after the activation becomes a norm before it that passes its input through, and what the other norm did to the
  activated channels goes into the weights that read them;
- a raw skip becomes an activated one: the best linear guess of the raw value, for normally distributed ones, goes into
  the weights that read it;
- channels of the input that a mono network has not are added up.

What is left (edges, the shift of half a sample between the two alignments, the time scale: a frame here is four there)
is for training to close. How much it is worth after a short run, `benchmarks/training_choices.py` measures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import ModelConfig, UNetConfig
from ..errors import CheckpointError
from ..unet import UNet

LOUDNESS = 200.0  # of Spleeter's input, unscaled transforms of 4096 samples, where the loudest of a patch is 1 here
NORMAL_SAMPLES = 4096
PHASES = 4  # a transposed convolution of stride 2 has a quarter of its taps on a sample, on average


def check_transfer(theirs: UNetConfig, ours: UNetConfig) -> None:
    """A CheckpointError unless networks of one configuration can start from those of the other."""
    if (theirs.channels, theirs.upsampling, ours.upsampling) != (ours.channels, "transposed", "transposed"):
        raise CheckpointError(
            f"cannot transfer a network of channels {theirs.channels} and {theirs.upsampling} upsampling to one of "
            f"{ours.channels} and {ours.upsampling}"
        )
    if (theirs.skips, theirs.decoder_order, ours.skips, ours.decoder_order) != (
        *("raw", "activation-norm"),
        *("activated", "norm-activation"),
    ):
        raise CheckpointError("a transfer goes from Spleeter's variant of the network to the paper's")


@torch.no_grad()
def transferred(source: UNet, model: ModelConfig, magnitude: Tensor) -> UNet:
    """A network of `model` that starts from `source`.

    Args:
        source: of as many blocks, of the same channels.
        magnitude: examples to measure the decoder's norms on, [batch, input_channels, bins, frames].
    Raises:
        CheckpointError: the networks are of different sizes, or of variants that this does not translate.
    """
    theirs, ours = source.config, model.unet
    check_transfer(theirs, ours)
    network = UNet(ours)
    skips = []
    for encoder, other in zip(network.encoder_blocks, source.encoder_blocks, strict=True):
        weight, bias = other.conv.state_dict().values()
        if weight.shape[1] != encoder.conv.weight.shape[1]:
            weight = weight.sum(1, keepdim=True) * LOUDNESS
        encoder.conv.load_state_dict({"weight": weight, "bias": bias})
        if other.norm is not None and encoder.norm is not None:
            encoder.norm.load_state_dict(other.norm.state_dict())
            skips.append(_raw_from_activated(other.norm, theirs.leaky_slope))
    reads = None  # what the next block's weights must do to the previous block's channels: factors and summands
    for decoder, source_block in zip(network.decoder_blocks, source.decoder_blocks, strict=True):
        weight, bias = source_block.conv.state_dict().values()
        if reads is not None:
            factors, summands = (torch.cat(pair) for pair in zip(skips.pop(), reads, strict=True))
            bias = bias + (weight * summands[:, None, None, None]).sum((0, 2, 3)) / PHASES
            weight = weight * factors[:, None, None, None]
        decoder.conv.load_state_dict({"weight": weight, "bias": bias})
        if source_block.norm is not None:
            scale, shift, mean, deviation = _statistics(source_block.norm)
            reads = scale / deviation, shift - mean * scale / deviation
    norms = [network.encoder_blocks[-1].norm, *(block.norm for block in network.decoder_blocks)]
    _pass_through(norms, network, magnitude)
    return network


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, shift, mean and standard deviation of a norm's channels."""
    state = norm.state_dict()
    deviation = (state["running_var"] + norm.eps).sqrt()
    return state["weight"], state["bias"], state["running_mean"], deviation


def _raw_from_activated(norm: nn.BatchNorm2d, slope: float) -> tuple[Tensor, Tensor]:
    """Factors and summands that bring activated channels closest to the raw ones, which are taken to be normal."""
    # evenly spaced quantiles: no random numbers
    normal = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(NORMAL_SAMPLES) + 0.5) / NORMAL_SAMPLES)
    scale, shift, mean, deviation = (values[:, None] for values in _statistics(norm))
    raw = mean + deviation * normal
    activated = functional.leaky_relu(scale * normal + shift, slope)
    distance = activated - activated.mean(1, keepdim=True)
    factor = (distance * raw).mean(1) / distance.square().mean(1).clamp(min=1e-12)
    return factor, raw.mean(1) - factor * activated.mean(1)


def _pass_through(norms: list[nn.BatchNorm2d | None], network: UNet, magnitude: Tensor) -> None:
    """Sets norms, one after the other, to give back what they get, on these examples."""

    def measure(norm: nn.Module, arguments: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        var, mean = torch.var_mean(arguments[0], (0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.bias.copy_(mean)
        norm.weight.copy_((var + norm.eps).sqrt())

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms if norm is not None]
    network.eval()(magnitude)
    for hook in hooks:
        hook.remove()
