"""A U-Net made ready to run fast: weights packed once, the whole network in one call of the compiled kernels."""

from __future__ import annotations

from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

from .ops import kernels
from .unet import DecoderBlock, EncoderBlock, UNet

Plan = TypeVar("Plan", bound="Packed")


class Packed:
    """Weights packed for this machine: they never change, so a copy is the plan itself, and stay in their process."""

    def __copy__(self: Plan) -> Plan:
        return self

    def __deepcopy__(self: Plan, _memo: object) -> Plan:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} is packed for this machine and cannot be pickled; pickle the networks that it "
            "is made of, or a Separator, which makes its own plans"
        )


class UNetPlan(Packed):
    """A network's inference on the CPU, in float32.

    The plan holds a copy of the weights as they were, batch norm (with its running statistics) folded in where that is
    exact, so training goes on unnoticed. It serves any number of threads at once. It always runs the compiled kernels:
    `PYUNETSEP_KERNELS=0` makes a `Separator` do without plans, and leaves those that you make as they are.
    """

    def __init__(self, network: UNet, *, bins: int, frames: int, batch: int = 1) -> None:
        """`bins`, `frames`, `batch`: of the patches it will see most; others work, a little slower.

        Raises:
            ValueError: not multiples of the network's stride, or not positive.
        """
        config = network.config
        for name, size, unit in (("bins", bins, config.stride), ("frames", frames, config.stride), ("batch", batch, 1)):
            if size < 1 or size % unit:
                raise ValueError(f"{name} must be a positive multiple of {unit}, got {size}")
        self.config = config
        self._plan = kernels.UNetPlan(described(network), (batch, frames, bins))

    def __call__(self, magnitude: Tensor) -> Tensor:
        """Estimates the stem's soft mask, as `UNet` does."""
        return self.estimate(magnitude)

    def estimate(self, magnitude: Tensor, *, masked: bool = False, out: Tensor | None = None) -> Tensor:
        """Estimates the stem's soft mask, or with `masked` the stem's magnitudes: mask times mixture.

        Args:
            magnitude: [batch, input_channels, bins, frames] of the mixture, float32 on the CPU; bins and frames are
                multiples of `config.stride`. Read in place if the bins of a frame are neighbours in memory.
            out: where to write the result, of the same shape, the bins of a frame being neighbours in memory.
        Returns:
            `out`, or a new tensor like it.
        Raises:
            TypeError, ValueError: dtype, device, shape or strides are others.
        """
        if magnitude.ndim != 4:
            raise ValueError(f"magnitude: got shape {list(magnitude.shape)}, wants [batch, channels, bins, frames]")
        return self._plan.run(magnitude.mT, masked, None if out is None else out.mT).mT

    def profile(self, magnitude: Tensor) -> dict[str, float]:
        """Seconds that each layer of one call takes."""
        return dict(self._plan.profile(magnitude.mT))

    @property
    def device(self) -> torch.device:
        """Where magnitudes and masks are."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of magnitudes and masks."""
        return torch.float32

    @property
    def simd_level(self) -> str:
        """The instruction set that the weights are packed for."""
        return self._plan.simd_level

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights, but for the few of the first and the last layer."""
        return self._plan.packed_bytes


@torch.no_grad()
def described(network: UNet) -> kernels.UNetDescription:
    """What the compiled plans are made of: the network's parameters on the CPU, norms folded in where that is exact.

    The kernels' rows are frames and their columns bins, as spectra lie in memory.
    """
    config = network.config
    return kernels.UNetDescription(
        [_encoder_block(block) for block in network.encoder],
        [_decoder_block(block) for block in network.decoder],
        _block(network.head) if isinstance(network.head, nn.Conv2d) else None,
        config.alignment,
        config.upsampling,
        config.skips == "raw",
    )


def _encoder_block(block: nn.Module) -> kernels.Block:
    assert isinstance(block, EncoderBlock)
    if block.norm is None:
        return _block(block.conv)
    scale, shift = _affine(block.norm)
    if block.raw_skip:  # the convolution itself is read, so its norm stays apart
        return _block(block.conv, before=(scale, shift), slope=block.leaky_slope)
    return _block(block.conv, folded=(scale, shift), slope=block.leaky_slope)


def _decoder_block(block: nn.Module) -> kernels.Block:
    assert isinstance(block, DecoderBlock)
    if block.norm is None:
        return _block(block.conv)
    if block.norm_first:
        return _block(block.conv, folded=_affine(block.norm), slope=0.0)
    return _block(block.conv, after=_affine(block.norm), slope=0.0)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation as a scale and a shift a channel, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _block(
    conv: nn.Conv2d | nn.ConvTranspose2d,
    *,
    folded: tuple[Tensor, Tensor] | None = None,
    before: tuple[Tensor, Tensor] | None = None,
    after: tuple[Tensor, Tensor] | None = None,
    slope: float = 1.0,
) -> kernels.Block:
    """`folded` goes into weights and bias, in float64; the others stay. The weights' axes become frames and bins."""
    assert conv.bias is not None
    weight, bias = conv.weight.mT, conv.bias
    if folded is not None:
        scale, shift = folded
        shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
        weight, bias = weight.double() * scale.view(shape), bias.double() * scale + shift
    return kernels.Block(weight.cpu(), bias.cpu(), _on_cpu(before), _on_cpu(after), slope)


def _on_cpu(affine: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return affine and (affine[0].cpu(), affine[1].cpu())
