"""The training ops of a GPU, on the host: tensors, autograd and whole networks over the emulated CUDA kernels."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pyunetsep import unet_training
from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.ops import training
from pyunetsep.unet import UNet
from tests.emulated.library import emulated_training_ops
from tests.learning import check_learning, relative
from tests.test_training_ops import (  # noqa: F401  tests that run here once more, on the emulated GPU
    down,
    scaled,
    test_gradients_of_whatever_wants_one,
    test_norms_together_are_one_of_all,
    test_opcheck,
    test_what_does_not_fit_a_norm_is_an_error,
    test_what_does_not_fit_is_an_error,
    test_what_does_not_fit_statistics_is_an_error,
    test_what_does_not_fit_the_gradient_of_a_norm_is_an_error,
    up,
)

OPS = ("conv", "upconv", "weight_gradient", "channel_sums", "norm_statistics", "norm", "norm_sums", "norm_gradient")
ELEMENTS = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(scope="session")
def emulated_ops(compiler: None) -> None:
    emulated_training_ops()


@contextlib.contextmanager
def routed() -> Iterator[None]:
    """The training ops of tensors on the CPU are those of a GPU."""
    library = torch.library.Library("pyunetsep", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # that they override others
        for name in OPS:
            function = getattr(torch.ops.pyunetsep_emulated, f"training_{name}")
            if name == "conv":  # whose schema has a keyword
                function = with_element(function)
            library.impl(f"training_{name}", function, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def with_element(conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *x, element=None: conv(*x, element)


@pytest.fixture(autouse=True)
def on_emulated_gpu(emulated_ops, monkeypatch):
    monkeypatch.setattr(training, "ONE_BLOCK", {"cpu", "cuda"})
    with routed():
        yield


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
