"""The ops of the U-Net's training, differentiable.

Maps lie as the kernels read and write them, in blocks of channels: [batch, blocks, bins, frames, channels of a block].
On the CPU blocks have BLOCK channels; on a GPU there is one, a multiple of BLOCK. The first convolution takes planes,
[batch, channels, bins, frames], and the last gives them. What these ops compute is what `torch.nn.functional` does
between `to_blocks` and `from_blocks`; the gradient of a convolution's input is a convolution of the other kind.

On a GPU a norm writes nothing: whoever reads its map reads it `Through` the norm, and autograd passes on the map before
the norm with the gradient of the one behind it. A convolution leaves the statistics of its map for the norm.

Planes and parameters are float32; maps are of whichever element the first convolution is asked for, float32, bfloat16
or, on a GPU, float16, with sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from . import kernels as _kernels  # noqa: F401  loads the extension, which has the ops

BLOCK = 16  # channels
GPUS = {"cuda"}  # devices whose maps have one block, and are read through their norms

conv_op = torch.ops.pyunetsep.training_conv.default
upconv_op = torch.ops.pyunetsep.training_upconv.default
weight_gradient = torch.ops.pyunetsep.training_weight_gradient.default
channel_sums = torch.ops.pyunetsep.training_channel_sums.default
head = torch.ops.pyunetsep.training_head.default
head_weight_gradient = torch.ops.pyunetsep.training_head_weight_gradient.default
masked_l1 = torch.ops.pyunetsep.training_masked_l1.default
masked_l1_gradient = torch.ops.pyunetsep.training_masked_l1_gradient.default
norm_statistics = torch.ops.pyunetsep.training_norm_statistics.default
norm_apply = torch.ops.pyunetsep.training_norm.default
norm_sums = torch.ops.pyunetsep.training_norm_sums.default
norm_gradient = torch.ops.pyunetsep.training_norm_gradient.default


def blocks_of(channels: int, device: torch.device) -> tuple[int, int]:
    """Of a map of so many channels: how many there are, and of how many channels."""
    filled = -(-channels // BLOCK)
    return (1, filled * BLOCK) if device.type in GPUS else (filled, BLOCK)


def map_shape(batch: int, channels: int, bins: int, frames: int, device: torch.device) -> tuple[int, ...]:
    blocks, block = blocks_of(channels, device)
    return batch, blocks, bins, frames, block


def to_blocks(planes: Tensor) -> Tensor:
    """[batch, channels, bins, frames] -> a map, zeros behind the last channel."""
    blocks, block = blocks_of(planes.shape[1], planes.device)
    missing = blocks * block - planes.shape[1]
    return F.pad(planes, (0, 0, 0, 0, 0, missing)).unflatten(1, (blocks, block)).permute(0, 1, 3, 4, 2).contiguous()


def from_blocks(blocks: Tensor, channels: int) -> Tensor:
    """A map -> [batch, channels, bins, frames]."""
    return blocks.permute(0, 1, 4, 2, 3).flatten(1, 2)[:, :channels].contiguous()


class Through(NamedTuple):
    """Batch norm by given statistics between two activations, then dropout, as which a map is read.

    y = max(z, slope z), z = weight (p - mean) / sqrt(variance + epsilon) + bias, p = max(x, inner_slope x).
    """

    norm: Tensor  # [4, channels]: mean, variance, weight, bias
    seeds: Tensor | None  # int32 [batch], of the examples' dropout
    numbers: tuple[float, float, float, float]  # epsilon, inner_slope, slope, probability of dropout


_AS_IT_IS = (None, None, ())


def _without_dropout(through: Through | None) -> tuple[Tensor | None, Sequence[float]]:
    """As what encoder blocks make is read, there being no dropout in them."""
    norm, seeds, numbers = through or _AS_IT_IS
    assert seeds is None, "only x of a transposed convolution is read through dropout"
    return norm, numbers


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alignment: str,
    *,
    through: Through | None = None,
    element: torch.dtype | None = None,
) -> Tensor:
    """A 5x5 convolution of stride 2 of a map, or of planes -> a map of `element`, or else of x's."""
    return conv_for_norm(x, weight, bias, alignment, None, through=through, element=element)[0]


def conv_for_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alignment: str,
    inner_slope: float | None,
    *,
    through: Through | None = None,
    element: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, and mean and variance [2, channels] of max(y, inner_slope y), if there is an inner_slope."""
    norm, numbers = _without_dropout(through)
    made: tuple[Tensor, Tensor] = conv_op(x, weight, bias, alignment, norm, numbers, inner_slope, element=element)
    return made


def upconv(
    x: Tensor,
    skip: Tensor | None,
    skip_channels: int,
    weight: Tensor,
    bias: Tensor | None,
    to_planes: bool,
    alignment: str,
    *,
    through: Through | None = None,
    skip_through: Through | None = None,
    sigmoid: bool = False,
) -> Tensor:
    """A 5x5 transposed convolution of stride 2 of a map, behind a skip if there is one -> a map, or planes.

    Args:
        sigmoid: Of planes.
    """
    skip_norm, skip_numbers = _without_dropout(skip_through)
    given = x, skip, skip_channels, weight, bias, to_planes, alignment, *(through or _AS_IT_IS)
    made: Tensor = upconv_op(*given, skip_norm, skip_numbers, None, sigmoid)[0]
    return made


def upconv_for_norm(
    x: Tensor,
    skip: Tensor | None,
    skip_channels: int,
    weight: Tensor,
    bias: Tensor | None,
    alignment: str,
    inner_slope: float,
    *,
    through: Through | None = None,
    skip_through: Through | None = None,
) -> tuple[Tensor, Tensor]:
    """The same to a map, and statistics as `conv_for_norm` gives."""
    skip_norm, skip_numbers = _without_dropout(skip_through)
    given = x, skip, skip_channels, weight, bias, False, alignment, *(through or _AS_IT_IS)
    made: tuple[Tensor, Tensor] = upconv_op(*given, skip_norm, skip_numbers, inner_slope)
    return made


# ---- shapes, for torch.compile


def _statistics(x: Tensor, channels: int, inner_slope: float | None) -> Tensor:
    return x.new_empty((0 if inner_slope is None else 2, channels), dtype=torch.float32)


@torch.library.register_fake("pyunetsep::training_conv")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alignment: str,
    norm: Tensor | None = None,
    numbers: Sequence[float] = (),
    inner_slope: float | None = None,
    *,
    element: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    channels = weight.shape[0]
    shape = map_shape(x.shape[0], channels, x.shape[2] // 2, x.shape[3] // 2, x.device)
    return x.new_empty(shape, dtype=element or x.dtype), _statistics(x, channels, inner_slope)


@torch.library.register_fake("pyunetsep::training_upconv")
def _(
    x: Tensor,
    skip: Tensor | None,
    skip_channels: int,
    weight: Tensor,
    bias: Tensor | None,
    to_planes: bool,
    alignment: str,
    norm: Tensor | None = None,
    seeds: Tensor | None = None,
    numbers: Sequence[float] = (),
    skip_norm: Tensor | None = None,
    skip_numbers: Sequence[float] = (),
    inner_slope: float | None = None,
    sigmoid: bool = False,
) -> tuple[Tensor, Tensor]:
    sizes = x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]
    y = weight.new_empty(sizes) if to_planes else x.new_empty(map_shape(*sizes, x.device))
    return y, _statistics(x, sizes[1], inner_slope)


@torch.library.register_fake("pyunetsep::training_weight_gradient")
def _(coarse: Tensor, skip: Tensor | None, fine: Tensor, channels: list[int], *_: Any) -> Tensor:
    return coarse.new_empty((channels[0] + channels[1], channels[2], 5, 5), dtype=torch.float32)


@torch.library.register_fake("pyunetsep::training_channel_sums")
def _(blocks: Tensor, channels: int) -> Tensor:
    return blocks.new_empty(channels, dtype=torch.float32)


@torch.library.register_fake("pyunetsep::training_head")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


@torch.library.register_fake("pyunetsep::training_head_weight_gradient")
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((gradient.shape[1], x.shape[1], 4, 4))


@torch.library.register_fake("pyunetsep::training_masked_l1")
def _(mask: Tensor, magnitude: Tensor, target: Tensor) -> Tensor:
    return mask.new_empty(())


@torch.library.register_fake("pyunetsep::training_masked_l1_gradient")
def _(gradient: Tensor, mask: Tensor, magnitude: Tensor, target: Tensor) -> Tensor:
    return mask.new_empty(mask.shape)


@torch.library.register_fake("pyunetsep::training_norm_statistics")
def _(x: Tensor, channels: int, inner_slope: float) -> Tensor:
    return _statistics(x, channels, inner_slope)


@torch.library.register_fake("pyunetsep::training_norm")
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("pyunetsep::training_norm_sums")
def _(gradient: Tensor, x: Tensor, norm: Tensor, *_: Any) -> Tensor:
    return norm.new_empty((2, norm.shape[1]))


@torch.library.register_fake("pyunetsep::training_norm_gradient")
def _(gradient: Tensor, sums: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


# ---- gradients


def _bias_gradient(gradient: Tensor, channels: int) -> Tensor:
    if gradient.ndim == 5:
        return channel_sums(gradient, channels)
    # pixels first: over all three at once, sums on a CPU take six times as long
    return gradient.flatten(2, 3).sum(2).sum(0)


def _without_gradient(ctx: Any, statistics: Tensor) -> None:
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)  # or zeros would be made for them


def _conv_setup(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> None:
    x, weight, _, ctx.alignment, norm, ctx.numbers, _ = inputs
    ctx.save_for_backward(x, weight, norm)
    _without_gradient(ctx, output[1])


def _conv_backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, norm = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *_others = ctx.needs_input_grad
    out, channels = weight.shape[:2]
    of_weight = None
    if needs_weight:
        of_gradient, of_skip = _AS_IT_IS, _AS_IT_IS[1:]
        of_weight = weight_gradient(
            gradient, None, x, [0, out, channels], ctx.alignment, *of_gradient, *of_skip, norm, ctx.numbers
        )
    return (
        upconv(gradient, None, 0, weight, None, x.ndim == 4, ctx.alignment) if needs_x else None,
        of_weight,
        _bias_gradient(gradient, out) if needs_bias else None,
        *[None] * 4,
    )


torch.library.register_autograd("pyunetsep::training_conv", _conv_backward, setup_context=_conv_setup)


def _upconv_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, skip, ctx.skip_channels, weight, _, _, ctx.alignment, norm, seeds, ctx.numbers, *others = inputs
    skip_norm, ctx.skip_numbers, _, sigmoid = others
    ctx.save_for_backward(x, skip, weight, norm, seeds, skip_norm, output[0] if sigmoid else None)
    _without_gradient(ctx, output[1])


def _split(both: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Views of a map's first channels, which are whole blocks, and of the rest."""
    (first_blocks, first_block), (blocks, block) = blocks_of(first, both.device), blocks_of(second, both.device)
    if both.device.type in GPUS:
        return both[..., :first_block], both[..., first_block : first_block + block]
    return both[:, :first_blocks], both[:, first_blocks : first_blocks + blocks]


def _upconv_backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, skip, weight, norm, seeds, skip_norm, mask = ctx.saved_tensors
    if mask is not None:
        gradient = torch.ops.aten.sigmoid_backward(gradient, mask)
    needs_x, needs_skip, _, needs_weight, needs_bias, *_others = ctx.needs_input_grad
    first, channels, out = ctx.skip_channels, weight.shape[0] - ctx.skip_channels, weight.shape[1]
    of_x = of_skip = None
    if first % BLOCK == 0 and needs_x:  # both lie in one map
        both = conv(gradient, weight, None, ctx.alignment, element=x.dtype)
        of_skip, of_x = _split(both, first, channels)
    else:
        of_x = conv(gradient, weight[first:], None, ctx.alignment, element=x.dtype) if needs_x else None
        of_skip = conv(gradient, weight[:first], None, ctx.alignment, element=x.dtype) if needs_skip else None
    of_weight = None
    if needs_weight:
        read = norm, seeds, ctx.numbers, skip_norm, ctx.skip_numbers
        of_weight = weight_gradient(x, skip, gradient, [first, channels, out], ctx.alignment, *read)
    return (
        of_x,
        of_skip if needs_skip else None,
        None,
        of_weight,
        _bias_gradient(gradient, out) if needs_bias else None,
        *[None] * 9,
    )


torch.library.register_autograd("pyunetsep::training_upconv", _upconv_backward, setup_context=_upconv_setup)


def _head_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _head_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    return (
        head(gradient, weight.flip(2, 3).transpose(0, 1), None) if needs_x else None,
        head_weight_gradient(gradient, x) if needs_weight else None,
        _bias_gradient(gradient, weight.shape[0]) if needs_bias else None,
    )


torch.library.register_autograd("pyunetsep::training_head", _head_backward, setup_context=_head_setup)


def _masked_l1_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _masked_l1_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:]):
        raise NotImplementedError("the loss has a gradient of the mask alone")
    return masked_l1_gradient(gradient, *ctx.saved_tensors), None, None


torch.library.register_autograd("pyunetsep::training_masked_l1", _masked_l1_backward, setup_context=_masked_l1_setup)


class Together(Protocol):
    """Whose statistics a norm shares."""

    def joined(self, mean: Tensor, variance: Tensor, values: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of all values, and how many there are, of those of `values` values here."""

    def added(self, sums: Tensor) -> Tensor:
        """The sum of all."""


class Normed(NamedTuple):
    """What a norm makes of a map."""

    y: Tensor  # a map as x; the map before the norm where it is to be read through it
    through: Through | None
    mean: Tensor  # [channels], as the variance, which is that of all values and not of a sample
    variance: Tensor
    values: Tensor | int  # of a channel, that these are the statistics of


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    inner_slope: float,
    slope: float,
    seeds: Tensor | None,
    dropout: float,
    together: Together | None = None,
    *,
    statistics: Tensor | None = None,
    on_load: bool = False,
    cancelled: Tensor | None = None,
) -> Normed:
    """Batch norm by the batch's own statistics between two activations, then dropout; see `Through`.

    Mean and variance are those of p in each channel, of all maps that are `together`.

    Args:
        statistics: [2, channels], mean and variance of p in this map, if they are known.
        on_load: Leaves all that to whoever reads the map.
        cancelled: A bias that is in x: the norm takes it away with the mean, so its gradient is 0. (Of PyTorch's sums
            over the map there is left what they were rounded by.)
    """
    if statistics is None:
        statistics = norm_statistics(x.detach(), weight.shape[0], inner_slope)
    numbers = epsilon, inner_slope, slope, dropout
    y, of_channels, values = _Norm.apply(x, weight, bias, statistics, numbers, seeds, together, on_load, cancelled)
    through = Through(of_channels, seeds, numbers) if on_load else None
    return Normed(y, through, of_channels[0], of_channels[1], values)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: Tensor,
        numbers: tuple[float, float, float, float],
        seeds: Tensor | None,
        together: Together | None,
        on_load: bool,
        cancelled: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        mean, variance = statistics
        own = x.shape[0] * x.shape[2] * x.shape[3]
        values: Tensor | int = own
        if together is not None:
            mean, variance, values = together.joined(mean, variance, own)
            ctx.share = own / values
        of_channels = torch.stack((mean, variance, weight, bias))
        ctx.save_for_backward(x, of_channels, seeds)
        ctx.numbers, ctx.together = numbers, together
        ctx.mark_non_differentiable(of_channels, *([values] if together is not None else []))
        ctx.set_materialize_grads(False)
        y = x.view_as(x) if on_load else norm_apply(x, of_channels, seeds, numbers)
        return y, of_channels, values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 9
        x, of_channels, seeds = ctx.saved_tensors
        # the parameters' gradients are those of the maps here, and added up as all others are
        sums = norm_sums(gradient, x, of_channels, seeds, ctx.numbers)
        of_all = sums if ctx.together is None else ctx.together.added(sums) * ctx.share
        of_x = norm_gradient(gradient, of_all, x, of_channels, seeds, ctx.numbers)
        of_cancelled = sums.new_zeros(sums.shape[1]) if ctx.needs_input_grad[-1] else None
        return of_x, sums[0], sums[1], *[None] * 5, of_cancelled


def _no_second_gradient(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        "the training kernels have no gradients of gradients; PYUNETSEP_KERNELS=0 trains in plain PyTorch, which has"
    )


for _op in (
    "weight_gradient",
    "head_weight_gradient",
    "masked_l1_gradient",
    "channel_sums",
    "norm_statistics",
    "norm",
    "norm_sums",
    "norm_gradient",
):
    torch.library.register_autograd(f"pyunetsep::training_{_op}", _no_second_gradient)
