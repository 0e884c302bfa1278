"""The U-Net's training ops: what they compute and their gradients, at every SIMD level of the processor."""

import copy
import dataclasses
import itertools
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyunetsep import unet_training
from pyunetsep.benchmark import threads, use_kernels
from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.dropout import SeededDropout
from pyunetsep.ops import training
from pyunetsep.unet import DownConv, UNet, UpConv
from tests.judge import judge
from tests.test_blocks import WHOLE, WINOGRAD

SHAPES = {  # batch, channels of the skip, the fine side's and the coarse side's, coarse bins and frames
    "smallest": (8, 0, 16, 1, 1, 1),  # several, for PyTorch's error of one value is luck
    "odd": (2, 3, 17, 5, 5, 3),
    "prime": (1, 19, 23, 37, 11, 7),
    "whole blocks": (3, 32, 16, 32, 8, 12),
    "some chunks": (16, 16, 16, 16, 32, 40),
    "second of the paper": (2, 16, 16, 32, 128, 32),
    "bottleneck": (2, 0, 256, 512, 8, 2),
    "one tile of many": (20, 0, 32, 48, 8, 2),  # 4x2 tiles
    "two rows": (20, 16, 17, 20, 2, 8),  # 2x4 tiles
    "groups of five and four": (5, 0, 17, 144, 9, 16),  # blocks of 16; and an odd number of 16 pixels
}
SHAPED = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
ALIGNMENTS = pytest.mark.parametrize("alignment", ["pytorch", "tensorflow"])


def down(x: Tensor, weight: Tensor, bias: Tensor | None, alignment: str) -> Tensor:
    if alignment == "tensorflow":
        return F.conv2d(F.pad(x, (1, 2, 1, 2)), weight, bias, stride=2)
    return F.conv2d(x, weight, bias, stride=2, padding=2)


def up(x: Tensor, weight: Tensor, bias: Tensor | None, alignment: str) -> Tensor:
    if alignment == "tensorflow":
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)[..., :-1, :-1]
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1)


def test_the_convolutions_are_those_of_the_network():
    x = torch.rand(1, 3, 8, 12)
    for alignment in ("pytorch", "tensorflow"):
        for module, function in ((DownConv(3, 5, alignment), down), (UpConv(3, 5, alignment), up)):
            assert torch.equal(module(x), function(x, module.weight, module.bias, alignment))


def test_there_and_back():
    x = torch.rand(2, 21, 3, 5)
    blocks = training.to_blocks(x)
    assert blocks.shape == (2, 2, 3, 5, 16) and torch.equal(training.from_blocks(blocks, 21), x)
    assert blocks[:, 1, ..., 5:].count_nonzero() == 0


# ---- convolutions


def scaled(*shape: int, by: int) -> Tensor:
    return torch.randn(shape) * (2 / (25 * by)) ** 0.5


@ALIGNMENTS
@SHAPED
@pytest.mark.parametrize("planes", [False, True])
def test_strided_convolution(shape, planes, alignment, level):
    batch, _, channels, out, bins, frames = shape
    channels = 2 if planes else channels
    x, weight, bias = torch.rand(batch, channels, 2 * bins, 2 * frames), scaled(out, channels, 5, 5, by=channels), None
    if batch > 1:
        bias = torch.randn(out)
    y = training.conv(x if planes else training.to_blocks(x), weight, bias, alignment)
    assert y.shape == (batch, -(-out // 16), bins, frames, 16)
    judge(training.from_blocks(y, out), down, x, weight, bias, alignment)
    assert y.permute(0, 2, 3, 1, 4).flatten(3)[..., out:].count_nonzero() == 0


@ALIGNMENTS
@SHAPED
@pytest.mark.parametrize("planes", [False, True])
def test_transposed_convolution(shape, planes, alignment, level):
    batch, skips, out, channels, bins, frames = shape
    out = 2 if planes else out
    skip = torch.rand(batch, skips, bins, frames) if skips else None
    x, weight = torch.rand(batch, channels, bins, frames), scaled(skips + channels, out, 5, 5, by=skips + channels)
    bias = torch.randn(out) if batch > 1 else None
    blocks = None if skip is None else training.to_blocks(skip)
    y = training.upconv(training.to_blocks(x), blocks, skips, weight, bias, planes, alignment)
    together = x if skip is None else torch.cat((skip, x), 1)
    judge(y if planes else training.from_blocks(y, out), up, together, weight, bias, alignment)


@ALIGNMENTS
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["whole blocks"]])
def test_the_mask_and_its_gradients(shape, alignment, level):
    batch, _, _, channels, bins, frames = shape
    x, weight = torch.randn(batch, channels, bins, frames), scaled(channels, 2, 5, 5, by=channels)
    bias, gradient = torch.randn(2), torch.randn(batch, 2, 2 * bins, 2 * frames)

    def mask(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.sigmoid(up(x, weight, bias, alignment))

    inputs = [tensor.requires_grad_() for tensor in (training.to_blocks(x), weight.clone(), bias.clone())]
    made = training.upconv(inputs[0], None, 0, *inputs[1:], True, alignment, sigmoid=True)
    judge(made.detach(), mask, x, weight, bias)
    gradients = torch.autograd.grad(made, inputs, gradient)
    for i, result in enumerate((training.from_blocks(gradients[0], channels), *gradients[1:])):

        def of(x, weight, bias, gradient, i=i):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
            return torch.autograd.grad(mask(*inputs), inputs, gradient)[i]

        judge(result, of, x, weight, bias, gradient)


def of_weight(fine: Tensor, coarse: Tensor, alignment: str) -> Tensor:
    weight = torch.zeros(coarse.shape[1], fine.shape[1], 5, 5, dtype=fine.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(down(fine, weight, None, alignment), weight, coarse)
    return gradient


@ALIGNMENTS
@SHAPED
@pytest.mark.parametrize("planes", [False, True])
def test_gradient_of_the_weight(shape, planes, alignment, level):
    batch, skips, fine_channels, channels, bins, frames = shape
    fine_channels = 2 if planes else fine_channels
    fine = torch.rand(batch, fine_channels, 2 * bins, 2 * frames)
    coarse, skip = torch.randn(batch, channels, bins, frames), torch.rand(batch, skips, bins, frames)
    gradient = training.weight_gradient(
        training.to_blocks(coarse),
        training.to_blocks(skip) if skips else None,
        fine if planes else training.to_blocks(fine),
        [skips, channels, fine_channels],
        alignment,
    )
    few = shape == SHAPES["two rows"]  # pixels and channels, whose sums lose less than the transforms of their tiles
    judge(gradient, of_weight, fine, torch.cat((skip, coarse), 1), alignment, times=WINOGRAD if few else 2)


@pytest.mark.parametrize("blocks", range(1, 6))
def test_gradients_of_the_papers_layers(blocks):
    """Within twice PyTorch's own error, the largest and on average: of maps and of weights, either way of a layer.

    At the level of this processor, which is PyTorch's as well.
    """
    channels, (bins, frames) = 16 * 2**blocks, (512 // 4 // 2**blocks, 128 // 2**blocks)
    fine, coarse = torch.rand(4, channels // 2, 2 * bins, 2 * frames), torch.randn(4, channels, bins, frames)
    weight = scaled(channels, channels // 2, 5, 5, by=channels)
    maps = training.to_blocks(fine), training.to_blocks(coarse)
    towards = training.from_blocks(training.conv(maps[0], weight, None, "pytorch"), channels)
    back = training.upconv(maps[1], None, 0, weight, None, False, "pytorch")
    of_weight_here = training.weight_gradient(maps[1], None, maps[0], [0, channels, channels // 2], "pytorch")
    for made, function, arguments in (
        (towards, down, (fine, weight, None, "pytorch")),
        (training.from_blocks(back, channels // 2), up, (coarse, weight, None, "pytorch")),
        (of_weight_here, of_weight, (fine, coarse, "pytorch")),
    ):
        judge(made, function, *arguments)
        truth = function(*(x.double() if isinstance(x, Tensor) else x for x in arguments))
        assert (made - truth).norm() <= 2 * (function(*arguments) - truth).norm()


@pytest.mark.parametrize(("batch", "size", "allowed"), [(2, 2, 0.0), (1, 1, 0.0), (2, 8, WHOLE)])
def test_gradients_of_small_integers_come_out_whole(batch, size, allowed, level):
    coarse, fine = (torch.randint(-2, 3, (batch, 16, size, size)).float() for size in (size, 2 * size))
    blocks = [training.to_blocks(x) for x in (coarse, fine)]
    for alignment in ("pytorch", "tensorflow"):
        gradient = training.weight_gradient(blocks[0], None, blocks[1], [0, 16, 16], alignment)
        assert (gradient - of_weight(fine, coarse, alignment)).abs().max() <= allowed


@pytest.mark.parametrize("number", [1, 3])
def test_sums_do_not_depend_on_the_threads(number):
    x, gradient = (training.to_blocks(torch.randn(5, 32, size, size)) for size in (32, 16))
    planes, numbers = torch.randn(5, 2, 32, 32), (1e-5, 1.0, 0.2, None, 0.0)
    inputs = [tensor.requires_grad_() for tensor in (x.clone(), torch.ones(32), torch.zeros(32))]
    fine, coarse = (training.to_blocks(torch.randn(3, *shape)) for shape in ((256, 8, 6), (272, 4, 3)))
    weight = torch.randn(272, 256, 5, 5)  # so large that tasks pack their weights, and transform their sums

    def results() -> list[Tensor]:
        y, _, mean, variance, _ = training.norm(*inputs, *numbers)
        return [
            training.weight_gradient(gradient, None, x, [0, 32, 32], "pytorch"),
            training.weight_gradient(gradient, None, planes, [0, 32, 2], "pytorch"),
            *(y, mean, variance),
            *torch.autograd.grad(y, inputs, y.detach()),
            training.conv(fine, weight, None, "pytorch"),
            training.upconv(coarse, None, 0, weight, None, False, "pytorch"),
            training.weight_gradient(coarse, None, fine, [0, 272, 256], "pytorch"),
        ]

    with threads(2):
        expected = results()
    with threads(number):
        assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.parametrize("shape", [(1, 19, 1, 1), (2, 5, 7, 3), (3, 48, 40, 37), (2, 16, 5, 600)])
def test_channel_sums(shape, level):
    x = torch.randn(shape)
    sums = training.channel_sums(training.to_blocks(x), shape[1])
    judge(sums, lambda x: x.sum((0, 2, 3)), x)


# ---- the head


def head(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, dilation=2, padding=3)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2, 1, 1), (2, 1, 2, 3, 2), (2, 1, 1, 40, 33), (3, 2, 3, 17, 64)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_head(shape, level):
    batch, channels, out, bins, frames = shape
    x, weight, bias = torch.randn(batch, channels, bins, frames), torch.randn(out, channels, 4, 4), torch.randn(out)
    gradient = torch.randn(batch, out, bins, frames)
    for chosen in (None, bias):
        judge(training.head(x, weight, chosen), head, x, weight, chosen)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    made = torch.autograd.grad(training.head(*inputs), inputs, gradient)
    for i, result in enumerate(made):

        def of(x, weight, bias, gradient, i=i):
            inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
            return torch.autograd.grad(head(*inputs), inputs, gradient)[i]

        judge(result, of, x, weight, bias, gradient)


def test_gradients_of_the_head_for_whoever_wants_one():
    for which in range(1, 8):
        x, weight, bias = wanted((torch.randn(2, 1, 4, 6), torch.randn(2, 1, 4, 4), torch.randn(2)), which)
        inputs = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
        gradient = torch.randn(2, 2, 4, 6)
        pairs = zip(
            *(torch.autograd.grad(f(x, weight, bias), inputs, gradient) for f in (training.head, head)), strict=True
        )
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda x, w: training.head(x[0], w, None), "x: got shape"),
        (lambda x, w: training.head(x[:0], w, None), "none of it empty"),
        (lambda x, w: training.head(x, w[..., :3], None), r"weight: got shape .* wants \[out, 1, 4, 4\]"),
        (lambda x, w: training.head(x, w, torch.ones(3)), r"bias: got shape \[3\], wants \[2\]"),
        (lambda x, w: training.head_weight_gradient(x[..., 1:], x), "gradient: got shape"),
        (lambda x, w: training.channel_sums(torch.rand(1, 1, 2, 2, 16), 17), "map: got shape"),
        (lambda x, w: training.channel_sums(torch.rand(1, 1, 2, 2, 16), 0), "channels: got 0"),
    ],
)
def test_what_does_not_fit_a_head_is_an_error(call, problem):
    with pytest.raises(ValueError, match=problem):
        call(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4))


# ---- the loss


@pytest.mark.parametrize("shape", [(1,), (2, 1, 5, 7), (3, 2, 64, 65), (1, 1, 8192, 2)])
def test_masked_l1(shape, level):
    def loss(mask: Tensor, magnitude: Tensor, target: Tensor) -> Tensor:
        return (mask * magnitude - target).abs().mean()

    mask, magnitude, target = torch.rand(3, *shape)
    for planes, value in ((mask, 0.5), (magnitude, 0.5), (target, 0.25)):  # where the gradient is 0
        planes.flatten()[0] = value
    wanted = mask.clone().requires_grad_()
    made = training.masked_l1(wanted, magnitude, target)
    judge(made.detach(), loss, mask, magnitude, target)
    (gradient,) = torch.autograd.grad(3 * made, wanted)
    theirs = mask.clone().requires_grad_()
    (3 * loss(theirs, magnitude, target)).backward()
    torch.testing.assert_close(gradient, theirs.grad, rtol=1e-6, atol=0)


def test_masked_l1_does_not_depend_on_the_threads():
    planes = torch.rand(3, 100_000)
    losses = []
    for number in (1, 2, 3):
        with threads(number):
            losses.append(training.masked_l1(*planes))
    assert losses[0] == losses[1] == losses[2]


def test_masked_l1_as_an_op():
    mask, magnitude, target = torch.rand(3, 2, 5)
    torch.library.opcheck(training.masked_l1, (mask.clone().requires_grad_(), magnitude, target))
    torch.library.opcheck(training.masked_l1_gradient, (torch.tensor(2.0), mask, magnitude, target))
    with pytest.raises(ValueError, match=r"target: got shape \[5\], wants that of the mask, \[2, 5\]"):
        training.masked_l1(mask, magnitude, target[0])
    with pytest.raises(ValueError, match="mask: got shape"):
        training.masked_l1(mask[:0], magnitude[:0], target[:0])
    with pytest.raises(TypeError, match="magnitude: got dtype Double"):
        training.masked_l1(mask, magnitude.double(), target)
    with pytest.raises(ValueError, match="gradient: got shape"):
        training.masked_l1_gradient(torch.ones(2), mask, magnitude, target)
    with pytest.raises(NotImplementedError, match="of the mask alone"):
        training.masked_l1(mask, magnitude.requires_grad_(), target).backward()


# ---- norm


def reference_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    inner_slope: float,
    slope: float,
    seeds: Tensor | None,
    dropout: float,
) -> Tensor:
    z = F.batch_norm(F.leaky_relu(x, inner_slope), None, None, weight, bias, training=True, eps=epsilon)
    layer = SeededDropout(dropout if seeds is not None else 0.0)
    layer.seeds = None if seeds is None else seeds.to(torch.int32)
    return layer(F.leaky_relu(z, slope))


def off_the_kink(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, inner_slope: float
) -> Tensor:
    """The gradient, but 0 where rounding decides which side of a ReLU an element is on."""
    inner = F.leaky_relu(x.double(), inner_slope)
    z = F.batch_norm(inner, None, None, weight.double(), bias.double(), training=True, eps=epsilon)
    return gradient * (z.abs() > 1e-4)


NORMS = {  # channels, bins, frames, slopes
    "encoder": (32, 16, 24, 1.0, 0.2),
    "decoder": (16, 64, 40, 1.0, 0.0),
    "norm last": (19, 7, 5, 0.0, 1.0),
    "one block of many": (3, 128, 33, 1.0, 0.0),
    "two values": (40, 1, 1, 1.0, 0.2),
}


@pytest.mark.parametrize("dropout", [None, 0.5, 0.1])
@pytest.mark.parametrize("shape", NORMS.values(), ids=NORMS)
def test_norm(shape, dropout, level):
    channels, bins, frames, *slopes = shape
    x = 3 + 2 * torch.randn(2, channels, bins, frames)
    weight, bias, gradient = 1 + 0.1 * torch.randn(channels), torch.randn(channels), torch.randn(x.shape)
    seeds = None if dropout is None else torch.tensor([5, -(2**31)], dtype=torch.int32)
    rest = (1e-5, *slopes, seeds, dropout or 0.0)
    gradient = off_the_kink(gradient, x, weight, bias, *rest[:2])
    inputs = [tensor.requires_grad_() for tensor in (training.to_blocks(x), weight.clone(), bias.clone())]
    y, _, mean, variance, values = training.norm(*inputs, *rest)
    assert values == 2 * bins * frames
    judge(training.from_blocks(y, channels), reference_norm, x, weight, bias, *rest)
    inner = F.leaky_relu(x.double(), slopes[0])
    assert torch.allclose(mean.double(), inner.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    assert torch.allclose(variance.double(), inner.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)

    made = torch.autograd.grad(y, inputs, training.to_blocks(gradient))
    for i, result in enumerate((training.from_blocks(made[0], channels), *made[1:])):

        def of(x, weight, bias, gradient, i=i):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
            return torch.autograd.grad(reference_norm(*inputs, *rest), inputs, gradient)[i]

        judge(result, of, x, weight, bias, gradient)


# ---- as differentiable ops


def wanted(tensors: tuple[Tensor | None, ...], which: int) -> tuple[Tensor | None, ...]:
    """The tensors, of which those in the number's bits want a gradient."""
    return tuple(x if x is None else x.detach().requires_grad_(bool(which >> i & 1)) for i, x in enumerate(tensors))


@ALIGNMENTS
def test_gradients_of_whatever_wants_one(alignment):
    """Each subset of the inputs, of maps and planes, with a skip in blocks of its own or in one map with the rest."""
    for planes, which in itertools.product((False, True), range(1, 8)):
        x = torch.randn(2, 2 if planes else 18, 4, 6)
        weight, bias = torch.randn(7, x.shape[1], 5, 5), torch.randn(7)
        x, weight, bias = wanted((x, weight, bias), which)
        expected = down(x, weight, bias, alignment)
        made = training.from_blocks(training.conv(x if planes else training.to_blocks(x), weight, bias, alignment), 7)
        inputs = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
        gradient = torch.randn(made.shape)
        pairs = zip(*(torch.autograd.grad(y, inputs, gradient) for y in (made, expected)), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)
    for planes, skips, which in itertools.product((False, True), (0, 5, 16), range(1, 16)):
        x, skip = torch.randn(2, 18, 4, 6), torch.randn(2, skips, 4, 6) if skips else None
        weight, bias = torch.randn(18 + skips, 7, 5, 5), torch.randn(7)
        x, weight, bias, skip = wanted((x, weight, bias, skip), which)
        inputs = [tensor for tensor in (x, weight, bias, skip) if tensor is not None and tensor.requires_grad]
        if not inputs:
            continue
        expected = up(x if skip is None else torch.cat((skip, x), 1), weight, bias, alignment)
        blocks = None if skip is None else training.to_blocks(skip)
        made = training.upconv(training.to_blocks(x), blocks, skips, weight, bias, planes, alignment)
        made = made if planes else training.from_blocks(made, 7)
        gradient = torch.randn(made.shape)
        pairs = zip(*(torch.autograd.grad(y, inputs, gradient) for y in (made, expected)), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)


@ALIGNMENTS
def test_opcheck(alignment):
    blocks = [training.to_blocks(torch.randn(2, 5, 4, 6)).requires_grad_() for _ in range(2)]
    weight, bias = torch.randn(7, 5, 5, 5, requires_grad=True), torch.randn(7, requires_grad=True)
    torch.library.opcheck(training.conv_op, (blocks[0], weight, bias, alignment))
    torch.library.opcheck(training.conv_op, (torch.randn(2, 5, 4, 6, requires_grad=True), weight, None, alignment))
    torch.library.opcheck(training.conv_op, (blocks[0], weight, bias, alignment, None, (), 0.2))
    up_weight = torch.randn(10, 7, 5, 5, requires_grad=True)
    for to_planes in (False, True):
        given = (*blocks, 5, up_weight, bias, to_planes, alignment, *training._AS_IT_IS, None, ())
        torch.library.opcheck(training.upconv_op, (*given, None, to_planes))
        torch.library.opcheck(training.upconv_op, (*given, None if to_planes else 1.0, False))
    x = blocks[0].detach()
    torch.library.opcheck(training.channel_sums, (x, 5))
    torch.library.opcheck(training.norm_statistics, (x, 5, 0.2))
    arguments = (x, torch.rand(4, 5), torch.tensor([1, 2], dtype=torch.int32), (1e-3, 1.0, 0.2, 0.5))
    torch.library.opcheck(training.norm_apply, arguments)
    torch.library.opcheck(training.norm_sums, (x, *arguments))
    torch.library.opcheck(training.norm_gradient, (x, torch.zeros(2, 5), *arguments))
    fine = training.to_blocks(torch.randn(2, 5, 8, 12))
    torch.library.opcheck(training.weight_gradient, (blocks[0].detach(), None, fine, [0, 5, 5], alignment))


def test_opcheck_of_the_head():
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((2, 1, 4, 6), (2, 1, 4, 4), (2,)))
    torch.library.opcheck(training.head, (x, weight, bias))
    torch.library.opcheck(training.head_weight_gradient, (torch.randn(2, 2, 4, 6), x.detach()))


@pytest.mark.parametrize("config", [JANSSON2017.unet, SPLEETER.unet], ids=["jansson2017", "spleeter"])
def test_which_biases_a_norm_cancels(config):
    """Those right before one, unless a skip goes round it: to them nothing but rounding would be a gradient."""
    network = UNet(dataclasses.replace(config, channels=(4, 8, 4), dropout_blocks=1)).train()
    network(torch.rand(2, config.input_channels, 16, 24)).square().sum().backward()
    without = {
        name
        for name, parameter in network.named_parameters()
        if name.endswith("bias") and not parameter.grad.count_nonzero()
    }
    last = len(network.decoder_blocks) - 1
    cancelled = {
        name
        for name, _ in network.named_parameters()
        if name.endswith("conv.bias") and not name.startswith(f"decoder.{last}.")
    }
    assert without == (cancelled if config is JANSSON2017.unet else set())


def test_gradients_of_gradients_are_refused():
    network = UNet(dataclasses.replace(JANSSON2017.unet, channels=(4, 8), dropout_blocks=0)).train()
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(network(torch.rand(2, 1, 8, 8)).sum(), parameters, create_graph=True)
    with pytest.raises(NotImplementedError, match="PYUNETSEP_KERNELS=0"):
        sum(gradient.square().sum() for gradient in gradients).backward()


def gradients(network: UNet, magnitude: Tensor, kernels: bool) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    with use_kernels(kernels):
        assert unet_training.serves(network, magnitude) == kernels
        mask = network(magnitude)
        (mask * magnitude).square().mean().backward()
    return mask.detach(), {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("config", "channels", "changes"),
    [
        (JANSSON2017.unet, (3, 17, 32), {}),
        (JANSSON2017.unet, (16, 32), {"dropout": 0.0, "alignment": "tensorflow"}),
        (SPLEETER.unet, (16, 32, 20), {}),
        (SPLEETER.unet, (4,), {"dropout_blocks": 1}),
    ],
)
def test_a_network_trains_as_in_plain_pytorch(config, channels, changes, level):
    """Against float64, no gradient is more than twice as far off as that of PyTorch in float32."""
    torch.manual_seed(1)
    config = dataclasses.replace(config, channels=channels, dropout_blocks=min(config.dropout_blocks, len(channels)))
    config = dataclasses.replace(config, **changes)
    network = UNet(config).train()
    for layer in network.decoder_blocks:
        layer.dropout.seeds = torch.tensor([3, 4], dtype=torch.int32)
    magnitude = torch.rand(2, config.input_channels, 32, 48)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    mask, made = gradients(network, magnitude, True)
    statistics = {key: value.clone() for key, value in network.state_dict().items() if "norm" in key}
    network.load_state_dict(state)
    _, own = gradients(network, magnitude, False)
    for key, value in network.state_dict().items():
        if "norm" in key:
            assert torch.allclose(statistics[key], value, rtol=1e-5, atol=1e-6), key
    network.load_state_dict(state)
    true_mask, true = gradients(network.double(), magnitude.double(), False)
    assert (mask - true_mask).abs().max() < 1e-5
    for name, gradient in made.items():
        error, own_error = ((g - true[name]).norm() for g in (gradient, own[name]))
        assert error <= 2 * own_error + 1e-6 * true[name].norm() + 1e-9, name


@pytest.mark.parametrize("config", [JANSSON2017.unet, SPLEETER.unet], ids=["jansson2017", "spleeter"])
def test_a_hundred_steps_are_those_of_plain_pytorch(config):
    """Both in float32 stay as near to the run in float64.

    With Adam, which makes much of the noise in gradients that are zero, and at higher rates, all three part, PyTorch's
    two as well: a ReLU that flips is soon another network. Which seeds have one is luck, for either, so several run.
    """

    def losses(kernels: bool, dtype: torch.dtype, seed: int) -> Tensor:
        torch.manual_seed(seed)
        network = UNet(dataclasses.replace(config, channels=(16, 32, 16), dropout_blocks=2)).train()
        examples = torch.rand(4, 2, config.input_channels, 32, 40)
        network, examples = network.to(dtype), examples.to(dtype)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        found = []
        for step in range(100):
            for i, layer in enumerate(network.decoder_blocks):
                layer.dropout.seeds = torch.tensor([7 * step + i, -step - i], dtype=torch.int32)
            magnitude, target = examples[step % 4], examples[step % 4].flip(-1)
            with use_kernels(kernels):
                assert unet_training.serves(network, magnitude) == kernels
                loss = (network(magnitude) * magnitude - target * magnitude).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.detach())
        return torch.stack(found).double()

    def distances(kernels: bool) -> Tensor:
        """From float64 so far, relative, [seeds, steps]."""
        apart = [(losses(kernels, torch.float32, seed) - true[seed]).abs() / true[seed] for seed in true]
        return torch.stack(apart).cummax(1).values

    true = {seed: losses(False, torch.float64, seed) for seed in range(5)}
    made, own = distances(True), distances(False)
    assert (made[:, 0] < 1e-6).all()
    made, own = made.median(0).values, own.median(0).values
    assert (made <= 4 * own + 1e-6).all(), (made / own).max()


def test_which_networks_the_kernels_train(monkeypatch):
    seen = []
    monkeypatch.setattr("pyunetsep.unet_training.forward", lambda network, magnitude: seen.append(1) or magnitude)
    small = dataclasses.replace(JANSSON2017.unet, channels=(4, 8), dropout_blocks=0)

    def served(network=None, magnitude=None, kernels=True, **changes):
        seen.clear()
        with use_kernels(kernels):
            network = network or UNet(dataclasses.replace(small, **changes)).train()
            network(torch.rand(2, network.config.input_channels, 8, 8) if magnitude is None else magnitude)
        return bool(seen)

    assert served()
    assert not served(kernels=False)
    assert not served(UNet(small).eval())
    assert not served(upsampling="nearest")
    assert not served(UNet(small).double().train(), torch.rand(2, 1, 8, 8, dtype=torch.float64))
    assert not served(magnitude=torch.rand(0, 1, 8, 8))
    frozen = UNet(small).train()
    frozen.freeze(all_but=1)
    assert not served(frozen)
    others = UNet(small).train()
    others.decoder_blocks[0].dropout = nn.Dropout(0.3)
    assert not served(others)
    hooked = UNet(small).train()
    hook = hooked.encoder_blocks[1].conv.register_forward_hook(lambda *_: None)
    assert not served(hooked)
    hook.remove()
    assert served(hooked)
    cumulative = UNet(small).train()
    cumulative.encoder_blocks[0].norm.momentum = None
    assert not served(cumulative)
    assert served(copy.deepcopy(UNet(small).train())) and served(pickle.loads(pickle.dumps(UNet(small).train())))
    with torch.autocast("cpu", torch.float16):
        assert not served()


def test_norms_of_others_are_theirs():
    network = UNet(dataclasses.replace(JANSSON2017.unet, channels=(4, 8), dropout_blocks=0)).train()
    assert unet_training.serves(network, torch.rand(2, 1, 8, 8))
    assert not unet_training.serves(nn.SyncBatchNorm.convert_sync_batchnorm(network), torch.rand(2, 1, 8, 8))


def test_one_value_a_channel_is_an_error():
    network = UNet(dataclasses.replace(JANSSON2017.unet, channels=(4, 8), dropout_blocks=0)).train()
    with pytest.raises(ValueError, match="more than one value a channel"):
        network(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda x, w: training.conv(x, w, None, "other"), "alignment: got 'other'"),
        (lambda x, w: training.conv(x[..., :8], w, None, "pytorch"), r"x: got shape .* wants \[batch, 1"),
        (lambda x, w: training.conv(x[:, :, :3], w, None, "pytorch"), "x: got shape .* wants even"),
        (lambda x, w: training.conv(x, w[..., :3], None, "pytorch"), "weight: got shape"),
        (lambda x, w: training.conv(x, w, w[0, 0, 0], "pytorch"), r"bias: got shape \[5\], wants \[4\]"),
        (lambda x, w: training.conv(torch.rand(1, 16, 4, 4), w[:, :1].expand(4, 16, 5, 5), None, "pytorch"), "fewer"),
        (lambda x, w: training.upconv(x, None, 2, w, None, False, "pytorch"), "skip_channels: got 2, wants 0"),
        (lambda x, w: training.upconv(x, x, 4, w, None, False, "pytorch"), "skip_channels: got 4, wants fewer"),
        (
            lambda x, w: training.upconv(x, None, 0, w[:, :1].expand(4, 16, 5, 5), None, True, "pytorch"),
            "fewer than 16",
        ),
        (lambda x, w: training.upconv(x, x[:, :, :2], 2, w, None, False, "pytorch"), "skip: got shape"),
        (lambda x, w: training.upconv(x, None, 0, w, None, False, "pytorch", sigmoid=True), "sigmoid: got true"),
        (
            lambda x, w: training.upconv_op(x, None, 0, w, None, True, "pytorch", None, None, (), None, (), 1.0),
            "inner_slope: got 1, wants none where planes",
        ),
        (lambda x, w: training.weight_gradient(x, None, x, [0, 4, 4], "pytorch"), "fine: got shape .* wants twice"),
        (lambda x, w: training.weight_gradient(x, None, x, [4, 4], "pytorch"), "channels: got"),
    ],
)
def test_what_does_not_fit_is_an_error(call, problem):
    with pytest.raises(ValueError, match=problem):
        call(torch.rand(2, 1, 4, 4, 16), torch.rand(4, 4, 5, 5))


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"norm": torch.ones(4, 17)}, ValueError, "x: got shape"),
        ({"norm": torch.ones(3, 16)}, ValueError, r"norm: got shape .* wants \[4, 16\], mean, variance, weight and"),
        ({"norm": torch.ones(4)}, ValueError, "norm: got shape"),
        ({"norm": torch.ones(4, 16).double()}, TypeError, "norm: got dtype Double"),
        ({"numbers": (1e-5, 2.0, 0.0, 0.5)}, ValueError, "inner_slope: got 2"),
        ({"numbers": (1e-5, 1.0, -1.0, 0.5)}, ValueError, "slope: got -1"),
        ({"numbers": (1e-5, 1.0, 0.0, 1.0)}, ValueError, "dropout: got 1"),
        ({"numbers": (1e-5, 1.0, 0.0)}, ValueError, "numbers: got"),
        ({"seeds": torch.ones(2)}, TypeError, "seeds: got dtype Float"),
        ({"seeds": torch.ones(3, dtype=torch.int32)}, ValueError, "seeds: got shape"),
        ({"x": torch.rand(2, 1, 2, 2, 16).double()}, TypeError, "x: got dtype Double"),
    ],
)
def test_what_does_not_fit_a_norm_is_an_error(changes, error, problem):
    arguments = {
        "x": torch.rand(2, 1, 2, 2, 16),
        "norm": torch.ones(4, 16),
        "seeds": torch.tensor([1, 2], dtype=torch.int32),
        "numbers": (1e-5, 1.0, 0.0, 0.5),
    }
    with pytest.raises(error, match=problem):
        training.norm_apply(*(arguments | changes).values())


@pytest.mark.parametrize(
    ("which", "problem"), [(0, "gradient: got shape"), (1, "sums: got shape"), (2, "gradient:"), (3, "norm: got shape")]
)
def test_what_does_not_fit_the_gradient_of_a_norm_is_an_error(which, problem):
    x, rest = torch.rand(2, 1, 2, 2, 16), (None, (1e-5, 1.0, 0.0, 0.0))
    tensors = [x, torch.ones(2, 16), x, torch.ones(4, 16)]
    tensors[which] = tensors[which][:1]
    with pytest.raises(ValueError, match=problem):
        training.norm_gradient(*tensors, *rest)
    if which != 1:
        with pytest.raises(ValueError, match=problem):
            training.norm_sums(tensors[0], *tensors[2:], *rest)


@pytest.mark.parametrize(
    ("x", "channels", "slope", "problem"),
    [
        (torch.rand(2, 1, 2, 2, 16), 17, 1.0, "x: got shape"),
        (torch.rand(2, 1, 2, 2, 16), 0, 1.0, "channels: got 0"),
        (torch.rand(2, 1, 2, 2, 16), 16, 1.5, "inner_slope: got 1.5"),
    ],
)
def test_what_does_not_fit_statistics_is_an_error(x, channels, slope, problem):
    with pytest.raises(ValueError, match=problem):
        training.norm_statistics(x, channels, slope)


class Halves:
    """Two batches, one behind the other, as two processes would have them."""

    def __init__(self, mean, variance, sums):
        self.statistics, self.sums = (mean, variance), sums

    def joined(self, mean, variance, values):
        return *self.statistics, torch.tensor(2.0 * values)

    def added(self, sums):
        return self.sums


@pytest.mark.parametrize("on_load", [False, True])
def test_norms_together_are_one_of_all(on_load):
    """What halves of a batch make of the statistics and sums of all is what the whole batch makes."""
    x, gradient = (
        training.to_blocks(torch.randn(4, 5, 6, 7)).requires_grad_(),
        training.to_blocks(torch.randn(4, 5, 6, 7)),
    )
    weight, bias, numbers = torch.rand(5).requires_grad_(), torch.rand(5).requires_grad_(), (1e-3, 1.0, 0.2, None, 0.0)
    y, _, mean, variance, _ = training.norm(x, weight, bias, *numbers)
    of_all = torch.autograd.grad(y, (x, weight, bias), gradient)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        half = x.detach()[part].requires_grad_()
        together = Halves(mean, variance, torch.stack(of_all[1:]))
        y_half, through, *of_all_maps = training.norm(half, weight, bias, *numbers, together, on_load=on_load)
        assert y_half.requires_grad and not any(x.requires_grad for x in of_all_maps)
        read = training.norm_apply(y_half.detach(), *through) if on_load else y_half
        assert torch.equal(read, y[part])
        halves.append(torch.autograd.grad(y_half, (half, weight, bias), gradient[part]))
    torch.testing.assert_close(torch.cat([half[0] for half in halves]), of_all[0])
    for i in (1, 2):
        torch.testing.assert_close(halves[0][i] + halves[1][i], of_all[i])


def test_every_pair_of_alignment_and_depth_fits_the_phases():
    """A strided convolution and its transpose are each other's adjoint: <y, conv(x)> = <upconv(y), x>."""
    for alignment, (bins, frames) in itertools.product(("pytorch", "tensorflow"), ((2, 2), (6, 10), (16, 4))):
        x, y = torch.randn(1, 16, bins, frames), torch.randn(1, 32, bins // 2, frames // 2)
        weight = torch.randn(32, 16, 5, 5)
        there = training.from_blocks(training.conv(training.to_blocks(x), weight, None, alignment), 32)
        back = training.upconv(training.to_blocks(y), None, 0, weight, None, False, alignment)
        assert torch.allclose((y * there).sum(), (training.from_blocks(back, 16) * x).sum(), rtol=1e-3, atol=1e-2)
