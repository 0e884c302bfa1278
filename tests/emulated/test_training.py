"""The training ops of a GPU, on the host: tensors, autograd and whole networks over the emulated CUDA kernels."""

import contextlib
import ctypes
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyunetsep import unet_training
from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.ops import training
from pyunetsep.unet import UNet
from tests.emulated.library import ORDERS, before_no_memory, emulated_training_ops
from tests.judge import judge
from tests.learning import check_learning, relative
from tests.test_training_ops import (  # noqa: F401  tests that run here once more, on the emulated GPU
    down,
    scaled,
    test_gradients_of_whatever_wants_one,
    test_masked_l1,
    test_masked_l1_as_an_op,
    test_norms_together_are_one_of_all,
    test_opcheck,
    test_the_mask_and_its_gradients,
    test_what_does_not_fit_a_norm_is_an_error,
    test_what_does_not_fit_is_an_error,
    test_what_does_not_fit_statistics_is_an_error,
    test_what_does_not_fit_the_gradient_of_a_norm_is_an_error,
    test_which_biases_a_norm_cancels,
    up,
)

OPS = ("conv", "upconv", "weight_gradient", "channel_sums", "norm_statistics", "norm", "norm_sums", "norm_gradient")
OPS += ("masked_l1", "masked_l1_gradient")
ELEMENTS = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(scope="session")
def emulated_ops(compiler: None) -> ctypes.CDLL:
    return emulated_training_ops()


@contextlib.contextmanager
def routed() -> Iterator[None]:
    """The training ops of tensors on the CPU are those of a GPU."""
    library = torch.library.Library("pyunetsep", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that they override others
        for name in OPS:
            function = getattr(torch.ops.pyunetsep_emulated, f"training_{name}")
            library.impl(f"training_{name}", function, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


@pytest.fixture(autouse=True)
def on_emulated_gpu(emulated_ops, monkeypatch):
    monkeypatch.setattr(training, "GPUS", {"cpu", "cuda"})
    emulated_ops.set_order(0, 0)
    with routed():
        yield


@pytest.fixture
def in_each_order(emulated_ops) -> Callable[[Callable[[], Iterable[Tensor]]], list[Tensor]]:
    """Computes tensors in each order of threads and of copies, which must not show in them."""

    def computed(compute: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        results = []
        for order in ORDERS:
            emulated_ops.set_order(*order)
            results.append(list(compute()))
        for other in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
        return results[0]

    return computed


def test_the_ops_are_those_of_a_gpu():
    weight = torch.rand(32, 16, 5, 5)
    with pytest.raises(ValueError, match=r"wants \[batch, 1, rows, columns, 32\]"):
        training.upconv(torch.rand(1, 2, 2, 2, 16), None, 0, weight, None, False, "pytorch")


@pytest.mark.parametrize("alignment", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("sizes", [(2, 16, 20, 32), (1, 3, 16, 17)], ids=["in one map", "apart"])
def test_convolutions_and_their_gradients(sizes, element, alignment):
    """From planes, there and back past a skip, to planes: against float64, and against PyTorch's own distance to it."""
    batch, skips, channels, width = sizes
    shapes = [(skips, 2, 5, 5), (channels, skips, 5, 5), (channels, width, 5, 5), (skips + width, 3, 5, 5)]
    weights = [scaled(*shape, by=shape[1]).to(element).float() for shape in shapes]
    biases = [torch.randn(n) for n in (skips, channels, width, 3)]
    planes = torch.rand(batch, 2, 8, 12)

    def plain(planes, *parameters):
        weights, biases = parameters[:4], parameters[4:]
        skip = down(planes, weights[0], biases[0], alignment)
        x = up(down(skip, weights[1], biases[1], alignment), weights[2], biases[2], alignment)
        return up(torch.cat((skip, x), 1), weights[3], biases[3], alignment)

    def ours(planes, *parameters):
        weights, biases = parameters[:4], parameters[4:]
        skip = training.conv(planes, weights[0], biases[0], alignment, element=element)
        x = training.conv(skip, weights[1], biases[1], alignment)
        assert x.dtype == element
        x = training.upconv(x, None, 0, weights[2], biases[2], False, alignment)
        return training.upconv(x, skip, skips, weights[3], biases[3], True, alignment)

    def results(function, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (planes, *weights, *biases)]
        y = function(*leaves)
        return y, *torch.autograd.grad((y * y.detach().cos()).sum(), leaves)

    made, truth = results(ours, torch.float32), results(plain, torch.float64)
    with torch.autocast("cpu", element, enabled=element != torch.float32):
        theirs = results(plain, torch.float32)
    # some may be right by luck: then what all have on average is their own error
    own_errors = [relative(x, true) for x, true in zip(theirs, truth, strict=True)]
    usual = sum(own_errors) / len(own_errors)
    for x, own_error, true in zip(made, own_errors, truth, strict=True):
        assert x.dtype == torch.float32 and x.shape == true.shape
        assert relative(x, true) <= 2 * max(own_error, usual)


# ---- maps read through their norms, and statistics that convolutions leave


def random_map(batch: int, channels: int, bins: int, frames: int, element: torch.dtype) -> Tensor:
    return before_no_memory(training.to_blocks(torch.randn(batch, channels, bins, frames)).to(element))


def random_norm(channels: int, slopes: tuple[float, float], seeds: Tensor | None = None) -> training.Through:
    norm = torch.stack((torch.randn(channels), 0.1 + torch.rand(channels), *torch.randn(2, channels)))
    return training.Through(before_no_memory(norm), seeds, (1e-3, *slopes, 0.0 if seeds is None else 0.4))


SLOPES = [(1.0, 0.2), (0.0, 1.0)]
READ = {  # batch, channels of a skip, of the map and out, bins and frames of the coarse map
    "smallest": (1, 16, 16, 16, 1, 1),
    "channels that fill up": (2, 20, 3, 40, 5, 9),
    "more images than a tile has": (21, 16, 32, 16, 2, 1),
    "several tiles and blocks": (1, 32, 64, 144, 10, 20),
}


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize("sizes", READ.values(), ids=READ)
def test_a_map_read_through_its_norm_is_what_the_norm_makes(sizes, slopes, element, in_each_order):
    batch, skips, channels, out, bins, frames = sizes
    alignment = "pytorch" if slopes[0] == 1.0 else "tensorflow"
    fine = random_map(batch, channels, 2 * bins, 2 * frames, element)
    coarse, skip = (random_map(batch, n, bins, frames, element) for n in (channels, skips))
    seeds = torch.randint(-(2**31), 2**31, (batch,), dtype=torch.int32)
    through, skip_through = random_norm(channels, slopes, seeds), random_norm(skips, slopes[::-1])
    without_dropout = random_norm(channels, slopes)
    fine_y, coarse_y, skip_y = (
        training.norm_apply(x, *of_x) for x, of_x in ((fine, without_dropout), (coarse, through), (skip, skip_through))
    )

    weight, bias = scaled(out, channels, 5, 5, by=channels), torch.randn(out)
    gradient = random_map(batch, out, bins, frames, element)
    given = [0, out, channels], alignment
    as_it_is, read = (None, None, (), None, ()), (without_dropout.norm, without_dropout.numbers)
    made = in_each_order(
        lambda: (
            training.conv(fine, weight, bias, alignment, through=without_dropout),
            training.weight_gradient(gradient, None, fine, *given, *as_it_is, *read),
        )
    )
    assert torch.equal(made[0], training.conv(fine_y, weight, bias, alignment))
    assert torch.equal(made[1], training.weight_gradient(gradient, None, fine_y, *given))

    for planes, n in ((False, out), (True, 3)):
        weight, bias = scaled(skips + channels, n, 5, 5, by=channels), torch.randn(n)
        gradient = torch.randn(batch, n, 2 * bins, 2 * frames)
        gradient = gradient if planes else training.to_blocks(gradient).to(element)
        rest, given = (skips, weight, bias, planes, alignment), ([skips, channels, n], alignment)

        def results(rest=rest, given=given, gradient=gradient):
            return (
                training.upconv(coarse, skip, *rest, through=through, skip_through=skip_through),
                training.weight_gradient(coarse, skip, gradient, *given, *through, *skip_through[::2]),
            )

        made = in_each_order(results)
        assert torch.equal(made[0], training.upconv(coarse_y, skip_y, *rest))
        assert torch.equal(made[0], training.upconv(coarse, skip_y, *rest, through=through))  # as of a raw skip
        assert torch.equal(made[1], training.weight_gradient(coarse_y, skip_y, gradient, *given))


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("slope", [1.0, 0.0])
@pytest.mark.parametrize("sizes", [*READ.values(), (1, 16, 16, 16, 8, 32)], ids=[*READ, "whole tiles"])
def test_statistics_that_convolutions_leave(sizes, slope, element, in_each_order):
    """Those of the map, though its deviations are small next to its mean."""
    batch, _, channels, out, bins, frames = sizes
    planes, bias = torch.rand(batch, 2, 2 * bins, 2 * frames), 30 + torch.randn(out)
    fine, coarse = (random_map(batch, channels, n * bins, n * frames, element) for n in (2, 1))
    weight, up_weight = scaled(out, channels, 5, 5, by=channels), scaled(channels, out, 5, 5, by=channels)
    convolutions = {
        "first": lambda: training.conv_for_norm(planes, weight[:, :2], bias, "pytorch", slope, element=element),
        "strided": lambda: training.conv_for_norm(fine, weight, bias, "tensorflow", slope),
        "transposed": lambda: training.upconv_for_norm(coarse, None, 0, up_weight, bias, "pytorch", slope),
    }
    for name, convolution in convolutions.items():
        y, statistics = in_each_order(convolution)
        p = F.leaky_relu(training.from_blocks(y, out).double(), slope)
        rounding = 4 * torch.finfo(torch.float32).eps * p.abs().amax((0, 2, 3))
        assert ((statistics[0] - p.mean((0, 2, 3))).abs() <= rounding).all(), name
        assert ((statistics[1].sqrt() - p.std((0, 2, 3), correction=0)).abs() <= rounding).all(), name


def test_what_can_not_be_read_through_a_norm_is_an_error():
    through, weight = random_norm(2, (1.0, 0.2)), torch.rand(16, 2, 5, 5)
    with pytest.raises(ValueError, match="x: got a norm to read it through, which only maps on a GPU are"):
        training.conv(torch.rand(1, 2, 4, 4), weight, None, "pytorch", through=through)
    with pytest.raises(ValueError, match=r"norm: got shape \[4, 2\], wants \[4, 16\]"):
        training.upconv(torch.rand(1, 1, 2, 2, 16), None, 0, weight, None, False, "pytorch", through=through)


def test_the_loss_in_each_order(in_each_order):
    mask, magnitude, target = torch.rand(3, 70_000)
    made = in_each_order(
        lambda: (
            training.masked_l1(mask, magnitude, target),
            training.masked_l1_gradient(torch.tensor(3.0), mask, magnitude, target),
        )
    )
    judge(made[0], lambda *x: (x[0] * x[1] - x[2]).abs().mean(), mask, magnitude, target)


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize(
    ("config", "channels", "alignment"),
    [
        (JANSSON2017.unet, (3, 17, 32), "pytorch"),
        (JANSSON2017.unet, (16, 32), "tensorflow"),
        (SPLEETER.unet, (16, 32, 20), "tensorflow"),
    ],
)
def test_a_network_trains_as_in_plain_pytorch(config, channels, alignment, element, monkeypatch):
    torch.manual_seed(1)
    config = dataclasses.replace(config, channels=channels, dropout_blocks=2, alignment=alignment)
    network = UNet(config).train()
    for layer in network.decoder_blocks:
        layer.dropout.seeds = torch.tensor([3, 4], dtype=torch.int32)

    @contextlib.contextmanager
    def with_kernels(run: bool) -> Iterator[None]:
        monkeypatch.setattr(unet_training, "_element_of_maps", lambda device: element if run else None)
        yield

    check_learning(network, torch.rand(2, config.input_channels, 16, 24), element, with_kernels)


@pytest.mark.parametrize("element", ELEMENTS[1:])
@pytest.mark.parametrize("config", [JANSSON2017.unet, SPLEETER.unet], ids=["jansson2017", "spleeter"])
def test_the_way_back_needs_at_most_half_of_what_plain_pytorch_keeps(config, element, monkeypatch):
    network = UNet(dataclasses.replace(config, channels=(16, 32, 64), dropout_blocks=2)).train()
    magnitude = torch.rand(2, config.input_channels, 32, 32)

    def kept_bytes(kernels: bool) -> int:
        kept = {}  # by where they begin; tensors, so that nothing else can come to lie there

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        monkeypatch.setattr(unet_training, "_element_of_maps", lambda device: element if kernels else None)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", element, enabled=element != torch.float32),
        ):
            mask = network(magnitude)
        mask.float().sum().backward()
        of_network = {tensor.untyped_storage().data_ptr() for tensor in (magnitude, *network.parameters())}
        return sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in of_network)

    made, own = kept_bytes(True), kept_bytes(False)
    assert made <= own / 2, (made, own)
