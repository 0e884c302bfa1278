"""The U-Net: a magnitude spectrogram in, a soft mask out. It knows no audio.

Source: Jansson et al., "Singing Voice Separation with Deep U-Net Convolutional Networks", ISMIR 2017, section 2.1;
the variants are those of Hennequin et al., "Spleeter", JOSS 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import unet_training
from .config import UNetConfig
from .dropout import SeededDropout

KERNEL_SIZE = 5


class DownConv(nn.Conv2d):
    """5x5 convolution of stride 2; halves bins and frames.

    Output o reads inputs 2o - 2 .. 2o + 2 in PyTorch's alignment, 2o - 1 .. 2o + 3 in TensorFlow's ("SAME" padding of
    an even size: one zero before, two after).
    """

    def __init__(self, in_channels: int, out_channels: int, alignment: str) -> None:
        super().__init__(in_channels, out_channels, KERNEL_SIZE, stride=2, padding=2 if alignment == "pytorch" else 0)
        self.alignment = alignment

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.alignment == "pytorch" else F.pad(x, (1, 2, 1, 2)))


class UpConv(nn.ConvTranspose2d):
    """5x5 transposed convolution of stride 2, the mirror of `DownConv`; doubles bins and frames.

    Input i feeds outputs 2i - 2 .. 2i + 2 in PyTorch's alignment, 2i - 1 .. 2i + 3 in TensorFlow's.
    """

    def __init__(self, in_channels: int, out_channels: int, alignment: str) -> None:
        padding, output_padding = (2, 1) if alignment == "pytorch" else (1, 0)
        super().__init__(
            in_channels, out_channels, KERNEL_SIZE, stride=2, padding=padding, output_padding=output_padding
        )
        self.alignment = alignment

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        y = super().forward(x, output_size)
        return y if self.alignment == "pytorch" else y[..., :-1, :-1]


class NearestConv(nn.Conv2d):
    """Nearest-neighbour doubling, then a 5x5 convolution: an upsampling without checkerboard patterns."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL_SIZE, padding=KERNEL_SIZE // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class EncoderBlock(nn.Module):
    """Strided convolution, batch norm, leaky ReLU.

    `norm=False` makes the bottleneck of a network with raw skips, whose norm and activation nothing would read.
    """

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, *, norm: bool = True) -> None:
        super().__init__()
        self.conv = DownConv(in_channels, out_channels, config.alignment)
        self.norm: nn.BatchNorm2d | None = _norm(out_channels, config) if norm else None
        self.leaky_slope = config.leaky_slope
        self.raw_skip = config.skips == "raw"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, in_channels, bins, frames] -> raw and activated [batch, out_channels, bins / 2, frames / 2]."""
        raw = self.conv(x)
        activated = raw if self.norm is None else F.leaky_relu(self.norm(raw), self.leaky_slope)
        return raw, activated


class DecoderBlock(nn.Module):
    """Upsampling convolution, then batch norm and ReLU in either order, then dropout of single elements.

    `norm=False` makes the last block of a network whose mask is this block's sigmoid.
    """

    def __init__(
        self, in_channels: int, out_channels: int, config: UNetConfig, *, norm: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv: UpConv | NearestConv
        if config.upsampling == "transposed":
            self.conv = UpConv(in_channels, out_channels, config.alignment)
        else:
            self.conv = NearestConv(in_channels, out_channels)
        self.norm: nn.BatchNorm2d | None = _norm(out_channels, config) if norm else None
        self.norm_first = config.decoder_order == "norm-activation"
        self.dropout = SeededDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, bins, frames] -> [batch, out_channels, 2 * bins, 2 * frames]."""
        return self.finish(self.conv(x))

    def finish(self, x: Tensor) -> Tensor:
        """All that follows the convolution, of the same shape."""
        if self.norm is not None:
            x = F.relu(self.norm(x)) if self.norm_first else self.norm(F.relu(x))
        return self.dropout(x)


class UNet(nn.Module):
    """One stem's network.

    Encoder blocks halve bins and frames, decoder blocks double them again; from the second on, a decoder block reads
    the encoder's output of its size (the skip) in front of the previous block's. In training, in float32 and under
    autocast on a GPU or a CPU with AMX, the compiled kernels do the work (`PYUNETSEP_KERNELS=0`: plain PyTorch); for
    inference see `UNetPlan` and `Separator`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        blocks = len(config.channels)
        raw = config.skips == "raw"
        dilated = config.head == "dilated"

        widths = (config.input_channels, *config.channels)
        self.encoder = nn.ModuleList(
            EncoderBlock(widths[i], widths[i + 1], config, norm=not (raw and i == blocks - 1)) for i in range(blocks)
        )
        outputs = (*reversed(config.channels[:-1]), 1 if dilated else config.input_channels)
        inputs = (config.channels[-1], *(2 * width for width in outputs[:-1]))
        self.decoder = nn.ModuleList(
            DecoderBlock(
                inputs[i],
                outputs[i],
                config,
                norm=dilated or i < blocks - 1,
                dropout=config.dropout if i < config.dropout_blocks else 0.0,
            )
            for i in range(blocks)
        )
        # 4x4 with dilation 2 spans 7 bins and frames: three zeros on each side keep the size
        self.head = nn.Conv2d(1, config.input_channels, 4, dilation=2, padding=3) if dilated else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, magnitude: Tensor) -> Tensor:
        """Estimates the stem's soft mask.

        Args:
            magnitude: [batch, input_channels, bins, frames]; bins and frames are multiples of `config.stride`.
        Returns:
            A mask in 0 .. 1 of the same shape.
        Raises:
            ValueError: the shape does not fit.
        """
        shape, stride = tuple(magnitude.shape), self.config.stride
        if len(shape) != 4 or shape[1] != self.config.input_channels or shape[2] % stride or shape[3] % stride:
            raise ValueError(
                f"magnitude must be [batch, {self.config.input_channels}, bins, frames] with bins and frames multiples "
                f"of {stride}, got {list(shape)}"
            )
        if unet_training.serves(self, magnitude):
            return unet_training.forward(self, magnitude)
        raw_skips = self.config.skips == "raw"
        skips = []
        x = magnitude
        for encoder_block in self.encoder:
            raw, x = encoder_block(x)
            skips.append(raw if raw_skips else x)
        x = skips.pop()
        for decoder_block in self.decoder:
            x = decoder_block(x)
            if skips:
                x = torch.cat((skips.pop(), x), dim=1)
        return torch.sigmoid(self.head(x))

    if TYPE_CHECKING:  # nn.Module takes and returns anything

        def __call__(self, magnitude: Tensor) -> Tensor: ...

    @torch.inference_mode()
    def estimate(self, magnitude: Tensor, *, masked: bool = False, out: Tensor | None = None) -> Tensor:
        """The mask, or with `masked` the stem's magnitudes, mask times mixture; in `out` if there is one.

        Shapes and errors are those of `forward`; no gradients.
        """
        mask = self(magnitude)
        result = mask * magnitude if masked else mask
        return result if out is None else out.copy_(result)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def encoder_blocks(self) -> list[EncoderBlock]:
        """From the input to the bottleneck."""
        return cast("list[EncoderBlock]", list(self.encoder))

    @property
    def decoder_blocks(self) -> list[DecoderBlock]:
        """From the bottleneck to the output."""
        return cast("list[DecoderBlock]", list(self.decoder))

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks that learn, from the input to the output."""
        return [*self.encoder, *self.decoder, *([self.head] if self.config.head == "dilated" else [])]

    def freeze(self, *, all_but: int = 0) -> None:
        """Stops all blocks from learning but the last `all_but` ones; a second call starts afresh.

        A frozen block keeps its batch-norm statistics and drops nothing, also in `train()` mode.

        Raises:
            ValueError: there are not so many blocks.
        """
        blocks = self.blocks
        if not 0 <= all_but <= len(blocks):
            raise ValueError(f"all_but must lie in 0 .. {len(blocks)} (the network's blocks), got {all_but}")
        for i, block in enumerate(blocks):
            block.requires_grad_(i >= len(blocks) - all_but)
        self.train(self.training)

    def train(self, mode: bool = True) -> UNet:
        super().train(mode)
        for block in self.blocks:
            if not any(parameter.requires_grad for parameter in block.parameters()):
                block.eval()
        return self


def _norm(channels: int, config: UNetConfig) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=config.norm_epsilon, momentum=config.norm_momentum)
