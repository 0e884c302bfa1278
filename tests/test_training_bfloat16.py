"""The training ops on bfloat16 maps, on the CPU, at every SIMD level of the processor.

Products go through the matrix unit where the processor has one and the level knows it, else through vectors; which of
both matters to how sums are rounded, not to what else a test wants.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyunetsep import unet_training
from pyunetsep.benchmark import threads
from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.ops import has_matrix_products, training
from pyunetsep.unet import UNet
from tests.judge import judge
from tests.learning import check_learning
from tests.test_training_ops import ALIGNMENTS, NORMS, SHAPED, down, of_weight, off_the_kink, reference_norm, scaled, up

BFLOAT16 = torch.bfloat16
PLANES = pytest.mark.parametrize("planes", [False, True])


def rounded(x: Tensor) -> Tensor:
    return x.to(BFLOAT16).to(x.dtype)


def to_blocks(x: Tensor) -> Tensor:
    return training.to_blocks(x.to(BFLOAT16))


# ---- convolutions


@ALIGNMENTS
@SHAPED
@PLANES
def test_strided_convolution(shape, planes, alignment, level):
    batch, _, channels, out, bins, frames = shape
    channels = 2 if planes else channels
    x, weight = torch.rand(batch, channels, 2 * bins, 2 * frames), scaled(out, channels, 5, 5, by=channels)
    bias = rounded(torch.randn(out)) if batch > 1 else None
    y = training.conv(x if planes else to_blocks(x), weight, bias, alignment, element=BFLOAT16)
    assert y.shape == (batch, -(-out // 16), bins, frames, 16) and y.dtype == BFLOAT16
    judge(training.from_blocks(y, out), down, x, weight, bias, alignment)
    assert y.permute(0, 2, 3, 1, 4).flatten(3)[..., out:].count_nonzero() == 0


@ALIGNMENTS
@SHAPED
@PLANES
def test_transposed_convolution(shape, planes, alignment, level):
    batch, skips, out, channels, bins, frames = shape
    out = 2 if planes else out
    skip = torch.rand(batch, skips, bins, frames) if skips else None
    x, weight = torch.rand(batch, channels, bins, frames), scaled(skips + channels, out, 5, 5, by=skips + channels)
    bias = rounded(torch.randn(out)) if batch > 1 else None
    blocks = None if skip is None else to_blocks(skip)
    y = training.upconv(to_blocks(x), blocks, skips, weight, bias, planes, alignment)
    together = x if skip is None else torch.cat((skip, x), 1)
    if planes:
        # a matrix unit adds up all inputs' products in turn, and not in parts, as PyTorch and vectors do
        times = 3 if has_matrix_products() else 2
        judge(y, up, rounded(together), rounded(weight), bias, alignment, times=times)
    else:
        assert y.dtype == BFLOAT16 and y.permute(0, 2, 3, 1, 4).flatten(3)[..., out:].count_nonzero() == 0
        judge(training.from_blocks(y, out), up, together, weight, bias, alignment)


@ALIGNMENTS
@SHAPED
@PLANES
def test_gradient_of_the_weight(shape, planes, alignment, level):
    batch, skips, fine_channels, channels, bins, frames = shape
    fine_channels = 2 if planes else fine_channels
    fine = rounded(torch.rand(batch, fine_channels, 2 * bins, 2 * frames))
    coarse, skip = rounded(torch.randn(batch, channels, bins, frames)), rounded(torch.rand(batch, skips, bins, frames))
    gradient = training.weight_gradient(
        to_blocks(coarse),
        to_blocks(skip) if skips else None,
        fine if planes else to_blocks(fine),
        [skips, channels, fine_channels],
        alignment,
    )
    assert gradient.dtype == torch.float32
    judge(gradient, of_weight, fine, torch.cat((skip, coarse), 1), alignment)


def test_numbers_without_an_end_stay_so(level):
    """Rounding to sixteen bits keeps NaN, and makes infinity of what is beyond the largest."""
    weight = torch.zeros(3, 1, 5, 5)
    weight[:, 0, 2, 2] = torch.tensor([1.0, 3.4e38, torch.nan])
    y = training.conv(torch.full((1, 1, 4, 4), 2.0), weight, None, "pytorch", element=BFLOAT16)
    y = training.from_blocks(y, 3)[0, :, 0, 0]
    assert y[0] == 2 and y[1] == torch.inf and y[2].isnan()


@pytest.mark.parametrize("number", [1, 3])
def test_sums_do_not_depend_on_the_threads(number):
    shapes = {
        "large": (5, 32, 32, 16, 16),
        "deep": (2, 48, 272, 8, 6),
        "planes": (3, 2, 16, 16, 32),
        "groups": (5, 17, 144, 9, 16),
    }

    def results() -> list[Tensor]:
        torch.manual_seed(0)
        made = []
        for name, (batch, fine_channels, channels, rows, columns) in shapes.items():
            fine = torch.randn(batch, fine_channels, 2 * rows, 2 * columns)
            fine = fine if name == "planes" else to_blocks(fine)
            coarse, weight = (
                to_blocks(torch.randn(batch, channels, rows, columns)),
                torch.randn(channels, fine_channels, 5, 5),
            )
            made += [
                training.conv(fine, weight, None, "pytorch", element=BFLOAT16),
                training.upconv(coarse, None, 0, weight, None, name == "planes", "pytorch"),
                training.weight_gradient(coarse, None, fine, [0, channels, fine_channels], "pytorch"),
            ]
        return made

    with threads(2):
        expected = results()
    with threads(number):
        assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


# ---- norm


@pytest.mark.parametrize("dropout", [None, 0.5])
@pytest.mark.parametrize("shape", NORMS.values(), ids=NORMS)
def test_norm(shape, dropout, level):
    """Maps are as they should be but for the rounding of what comes out; sums are floats."""
    channels, bins, frames, *slopes = shape
    x = rounded(3 + 2 * torch.randn(2, channels, bins, frames))
    weight, bias = 1 + 0.1 * torch.randn(channels), torch.randn(channels)
    seeds = None if dropout is None else torch.tensor([5, -(2**31)], dtype=torch.int32)
    rest = (1e-5, *slopes, seeds, dropout or 0.0)
    gradient = off_the_kink(rounded(torch.randn(x.shape)), x, weight, bias, *rest[:2]).float()
    inputs = [tensor.requires_grad_() for tensor in (to_blocks(x), weight.clone(), bias.clone())]
    y, _, mean, variance, _ = training.norm(*inputs, *rest)
    assert y.dtype == BFLOAT16 and mean.dtype == variance.dtype == torch.float32
    inner = F.leaky_relu(x.double(), slopes[0])
    assert torch.allclose(mean.double(), inner.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    assert torch.allclose(variance.double(), inner.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
    made = torch.autograd.grad(y, inputs, to_blocks(gradient))

    true_inputs = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    true_y = reference_norm(*true_inputs, *rest)
    true = torch.autograd.grad(true_y, true_inputs, gradient.double())
    for result, wanted in ((y, true_y), (made[0], true[0])):
        result = training.from_blocks(result, channels).double()
        # half a unit in the last of eight binary places, and the float sums' errors
        largest = max(wanted.abs().max(), gradient.abs().max())
        assert ((result - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-5 * largest).all()
    for result, wanted in zip(made[1:], true[1:], strict=True):
        assert torch.allclose(result.double(), wanted, rtol=1e-5, atol=1e-5 * float(gradient.abs().sum()) / channels)


# ---- as differentiable ops, and in a network


def test_opcheck():
    blocks = [to_blocks(torch.randn(2, 5, 4, 6)).requires_grad_() for _ in range(2)]
    weight, bias = torch.randn(7, 5, 5, 5, requires_grad=True), torch.randn(7, requires_grad=True)
    planes = torch.randn(2, 5, 4, 6, requires_grad=True)
    torch.library.opcheck(training.conv_op, (blocks[0], weight, bias, "pytorch"))
    torch.library.opcheck(training.conv_op, (planes, weight, None, "pytorch"), {"element": BFLOAT16})
    up_weight = torch.randn(10, 7, 5, 5, requires_grad=True)
    for to_planes in (False, True):
        torch.library.opcheck(training.upconv_op, (*blocks, 5, up_weight, bias, to_planes, "pytorch"))


@pytest.mark.parametrize(
    ("config", "channels", "alignment"),
    [
        (JANSSON2017.unet, (3, 17, 32), "pytorch"),
        (JANSSON2017.unet, (16, 32), "tensorflow"),
        (SPLEETER.unet, (16, 32, 20), "tensorflow"),
    ],
)
def test_a_network_trains_as_in_plain_pytorch(config, channels, alignment, level, monkeypatch):
    torch.manual_seed(1)
    network = UNet(dataclasses.replace(config, channels=channels, dropout_blocks=2, alignment=alignment)).train()
    for layer in network.decoder_blocks:
        layer.dropout.seeds = torch.tensor([3, 4], dtype=torch.int32)

    @contextlib.contextmanager
    def with_kernels(run: bool) -> Iterator[None]:
        monkeypatch.setattr(unet_training, "has_matrix_products", lambda: run)
        yield

    check_learning(network, torch.rand(2, config.input_channels, 16, 32), BFLOAT16, with_kernels)


def test_kernels_train_where_they_are_fast(monkeypatch):
    network = UNet(dataclasses.replace(JANSSON2017.unet, channels=(4, 8), dropout_blocks=0)).train()
    magnitude = torch.rand(2, 1, 8, 8)
    for has in (False, True):
        monkeypatch.setattr(unet_training, "has_matrix_products", lambda has=has: has)
        with torch.autocast("cpu", BFLOAT16):
            assert unet_training.serves(network, magnitude) == has
        with torch.autocast("cpu", torch.float16):
            assert not unet_training.serves(network, magnitude)


def test_matrix_products_are_used_where_the_processor_has_them(level):
    if level != "avx512":
        assert not has_matrix_products()
    elif sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text().split()
        assert has_matrix_products() == ("amx_bf16" in flags and "amx_tile" in flags)


def test_halves_are_refused():
    x, weight = torch.rand(2, 1, 4, 4, 16).half(), torch.rand(4, 4, 5, 5)
    with pytest.raises(TypeError, match="x: got dtype Half, wants float32 or bfloat16"):
        training.conv(x, weight, None, "pytorch")
    with pytest.raises(TypeError, match="element: got Half"):
        training.conv(torch.rand(2, 4, 4, 4), weight, None, "pytorch", element=torch.float16)
    with pytest.raises(TypeError, match="gradient"):
        training.norm_sums(torch.rand(2, 1, 4, 4, 16), x.to(BFLOAT16), torch.ones(4, 16), None, (1e-5, 1.0, 0.0, 0.0))
