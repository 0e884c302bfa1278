"""The U-Net's blocks as ops, in evaluation: convolution, norm and activation in one pass.

The kernels are for float32 on the CPU; anything else runs in plain PyTorch. Each call packs its weights anew: a network
that runs more than once is better made a `pyunetsep.unet_plan.UNetPlan`.
"""

from torch import Tensor

from . import kernels, reference
from .checks import check_alike, check_float_tensor, shape
from .kernels import kernels_enabled

ALIGNMENTS = ("pytorch", "tensorflow")
UPSAMPLINGS = ("transposed", "nearest")


def encoder_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    slope: float = 0.2,
    alignment: str = "pytorch",
) -> tuple[Tensor, Tensor]:
    """5x5 convolution of stride 2, then batch norm as scale and shift, and leaky ReLU.

    Args:
        x: [batch, in_channels, bins, frames], any float dtype; two bins and two frames at least.
        weight: [out_channels, in_channels, 5, 5], dtype and device of `x`.
        bias, scale, shift: [out_channels], dtype and device of `x`.
        slope: of the activation below 0, from 0 to 1.
        alignment: output o reads inputs 2o - 2 ... 2o + 2 for "pytorch", 2o - 1 ... 2o + 3 for "tensorflow".
    Returns:
        The convolution with its bias, and leaky_relu(scale * that + shift), each [batch, out_channels, bins / 2,
        frames / 2], odd sizes rounded up for "pytorch" and down for "tensorflow".
    Raises:
        TypeError: a tensor that is none or not of a float dtype, dtypes that differ.
        ValueError: shapes or devices that do not fit, an unknown alignment, `slope` out of range.
    Source: Jansson et al., ISMIR 2017, section 2.1; the raw output is what Spleeter's decoder reads.
    """
    _check_map("x", x)
    if x.shape[1] < 1 or x.shape[2] < 2 or x.shape[3] < 2:
        raise ValueError(f"x: got shape {shape(x)}, wants a channel, two bins and two frames at least")
    _check_parameters(x, weight, x.shape[1], False, 5, bias=bias, scale=scale, shift=shift)
    if not 0 <= slope <= 1:
        raise ValueError(f"slope: got {slope}, wants 0 to 1")
    _check_name("alignment", alignment, ALIGNMENTS)
    op = kernels.encoder_block if _enabled(x) else reference.encoder_block
    return op(x, weight, bias, scale, shift, slope, alignment)


def decoder_block(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    norm_first: bool = True,
    alignment: str = "pytorch",
    upsampling: str = "transposed",
) -> Tensor:
    """Upsampling 5x5 convolution, then batch norm as scale and shift, and ReLU.

    Args:
        x: [batch, channels, bins, frames], the block before; any float dtype.
        skip: [batch, skip_channels, bins, frames] in front of `x`, or None.
        weight: [skip_channels + channels, out_channels, 5, 5] for "transposed", [out_channels, skip_channels +
            channels, 5, 5] for "nearest"; dtype and device of `x`, as all others.
        bias, scale, shift: [out_channels].
        norm_first: relu(scale * convolution + shift), else scale * relu(convolution) + shift.
        alignment: input i feeds outputs 2i - 2 ... 2i + 2 for "pytorch", 2i - 1 ... 2i + 3 for "tensorflow".
        upsampling: "transposed" convolution, or an ordinary one of the "nearest" neighbours, each repeated.
    Returns:
        [batch, out_channels, 2 * bins, 2 * frames].
    Raises:
        TypeError: a tensor that is none or not of a float dtype, dtypes that differ.
        ValueError: shapes or devices that do not fit, an unknown alignment or upsampling.
    Source: Jansson et al., ISMIR 2017, section 2.1; norm after the ReLU: Hennequin et al., Spleeter, JOSS 2020.
    """
    _check_decoder(x, skip, weight, alignment, upsampling, bias=bias, scale=scale, shift=shift)
    op = kernels.decoder_block if _enabled(x) else reference.decoder_block
    return op(x, skip, weight, bias, scale, shift, norm_first, alignment, upsampling)


def mask_block(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    alignment: str = "pytorch",
    upsampling: str = "transposed",
) -> Tensor:
    """The decoder's last block where it makes the mask: upsampling 5x5 convolution and sigmoid.

    Arguments and errors are those of `decoder_block`.

    Returns:
        [batch, out_channels, 2 * bins, 2 * frames], in 0 ... 1.
    Source: Jansson et al., ISMIR 2017, section 2.1.
    """
    _check_decoder(x, skip, weight, alignment, upsampling, bias=bias)
    op = kernels.mask_block if _enabled(x) else reference.mask_block
    return op(x, skip, weight, bias, alignment, upsampling)


def dilated_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """4x4 convolution with dilation 2 of a single map, and sigmoid: the mask of Spleeter's network.

    Args:
        x: [batch, 1, bins, frames], any float dtype.
        weight: [out_channels, 1, 4, 4], dtype and device of `x`. Output o reads inputs o - 3, o - 1, o + 1, o + 3.
        bias: [out_channels], dtype and device of `x`.
    Returns:
        [batch, out_channels, bins, frames], in 0 ... 1.
    Raises:
        TypeError: a tensor that is none or not of a float dtype, dtypes that differ.
        ValueError: shapes or devices that do not fit.
    Source: Hennequin et al., Spleeter, JOSS 2020.
    """
    _check_map("x", x)
    if x.shape[1] != 1:
        raise ValueError(f"x: got shape {shape(x)}, wants [batch, 1, bins, frames]")
    _check_parameters(x, weight, 1, False, 4, bias=bias)
    op = kernels.dilated_head if _enabled(x) else reference.dilated_head
    return op(x, weight, bias)


def _enabled(x: Tensor) -> bool:
    return kernels_enabled() and kernels.blocks(x)


def _check_map(name: str, x: Tensor) -> None:
    check_float_tensor(name, x)
    if x.ndim != 4:
        raise ValueError(f"{name}: got shape {shape(x)}, wants [batch, channels, bins, frames]")


def _check_name(name: str, value: str, known: tuple[str, str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, wants {known[0]} or {known[1]}")


def _check_parameters(
    x: Tensor, weight: Tensor, in_channels: int, by_input: bool, taps: int, **of_channels: Tensor
) -> None:
    check_alike("weight", weight, "x", x)
    wanted = ["out", in_channels, taps, taps]
    if by_input:
        wanted[:2] = in_channels, "out"
    out = weight.shape[by_input] if weight.ndim == 4 else 0
    if out < 1 or list(weight.shape) != [out if size == "out" else size for size in wanted]:
        raise ValueError(f"weight: got shape {shape(weight)}, wants [{', '.join(map(str, wanted))}]")
    for name, values in of_channels.items():
        check_alike(name, values, "x", x)
        if values.shape != (out,):
            raise ValueError(f"{name}: got shape {shape(values)}, wants [{out}], the channels out")


def _check_decoder(
    x: Tensor, skip: Tensor | None, weight: Tensor, alignment: str, upsampling: str, **of_channels: Tensor
) -> None:
    _check_name("alignment", alignment, ALIGNMENTS)
    _check_name("upsampling", upsampling, UPSAMPLINGS)
    _check_map("x", x)
    if 0 in x.shape[1:]:
        raise ValueError(f"x: got shape {shape(x)}, wants a channel, a bin and a frame at least")
    in_channels = x.shape[1]
    if skip is not None:
        check_alike("skip", skip, "x", x)
        _check_map("skip", skip)
        if skip.shape[0] != x.shape[0] or skip.shape[2:] != x.shape[2:]:
            raise ValueError(f"skip: got shape {shape(skip)}, wants that of x but for the channels, {shape(x)}")
        in_channels += skip.shape[1]
    _check_parameters(x, weight, in_channels, upsampling == "transposed", 5, **of_channels)
