"""The U-Net's layers of csrc/cuda on the host, each against the reference in float64."""

import ctypes

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyunetsep.ops import reference
from tests.judge import judge
from tests.test_training_ops import of_weight, off_the_kink, reference_norm

ELEMENTS = [torch.float16, torch.bfloat16, torch.float32]
ALIGNMENTS = ["pytorch", "tensorflow"]
SLOPE = 0.2
SIGMOID, MASKED, ACTIVATED = range(3)  # cpu::Ending


NAMES = {torch.float16: "half", torch.bfloat16: "bfloat16", torch.float32: "single"}


@pytest.fixture(params=ELEMENTS, ids=NAMES.values())
def element(request):
    """Of maps and weights."""
    return request.param


def each_element(cases):
    """Cases with elements. Halves meet each; bfloat16 differs from them in arithmetic alone, floats in one kernel."""
    pairs = [(case, element) for i, case in enumerate(cases) for element in ELEMENTS[: 1 if i % 3 else None]]
    return pytest.mark.parametrize(("sizes", "element"), pairs, ids=[f"{case}-{NAMES[e]}" for case, e in pairs])


def padded(x: Tensor, unit: int, dim: int = -1) -> Tensor:
    """Filled up with zeros."""
    missing = -x.shape[dim] % unit
    return torch.cat((x, x.new_zeros((*x.shape[:dim], missing, *x.shape[dim:][1:]))), dim) if missing else x


def to_map(x: Tensor | None, element: torch.dtype) -> Tensor | None:
    """[networks, batch, channels, rows, columns] -> the kernels' [networks, batch, rows, columns, channels]."""
    return None if x is None else padded(x.movedim(2, -1), 16).to(element)


def from_map(x: Tensor, channels: int) -> Tensor:
    assert not x[..., channels:].any(), "channels that only fill up are not zero"
    return x[..., :channels].movedim(-1, 2)


def parameter(x: Tensor | None) -> Tensor | None:
    return None if x is None else padded(x.float(), 64)


def rounded(*shape: int, element: torch.dtype, scale: float = 1.0) -> Tensor:
    """Random values that the element can hold."""
    return (torch.randn(shape) * scale).to(element).float()


def each_network(function, networks: int, *arguments):
    """Calls the function for each network with its part of the tensors."""
    parts = [[x[n] if isinstance(x, Tensor) else x for x in arguments] for n in range(networks)]
    return torch.stack([function(*part) for part in parts])


# networks, batch, channels in and out, rows and columns in
STRIDED = [
    (1, 3, 20, 70, 7, 9),  # channels that fill no chunk and no block, odd sizes
    (1, 1, 16, 32, 2, 2),
    (1, 1, 16, 32, 40, 70),
    (2, 2, 64, 128, 4, 16),  # several chunks
    (2, 1, 16, 32, 18, 34),  # several tiles, partly outside
    (1, 21, 48, 64, 4, 4),  # more images than a tile has
]


@pytest.mark.parametrize(
    ("alignment", "reads"),
    [("pytorch", False), ("tensorflow", True)],
    ids=["pytorch, as it is", "tensorflow, activated"],
)
@each_element(STRIDED)
def test_encoder_block(sizes, alignment, reads, element, emulated):
    networks, batch, in_channels, out_channels, rows, columns = sizes
    x = rounded(networks, batch, in_channels, rows, columns, element=element)
    weight = rounded(networks, out_channels, in_channels, 5, 5, element=element, scale=in_channels**-0.5 / 5)
    bias = rounded(networks, out_channels, element=element)
    read_scale = rounded(networks, in_channels, element=element) if reads else None
    read_shift = rounded(networks, in_channels, element=element) if reads else None
    out_rows, out_columns = ((size + (alignment == "pytorch")) // 2 for size in (rows, columns))

    def block(x, weight, bias, read_scale, read_shift):
        if read_scale is not None:
            activated = F.leaky_relu(x * read_scale[:, None, None] + read_shift[:, None, None], 0.1)
            x = activated.to(element).to(x.dtype)  # as the kernel keeps it
        one = torch.ones_like(bias)
        return reference.encoder_block(x, weight, bias, one, 0 * one, SLOPE, alignment)[1]

    inputs = [weight.double(), to_map(x, element), None, parameter(read_scale), parameter(read_shift)]
    inputs += [parameter(bias), None, None, None]
    outputs = [((networks, batch, out_rows, out_columns, -(-out_channels // 16) * 16), element)]
    numbers = (ELEMENTS.index(element), ALIGNMENTS.index(alignment), -1, -1)
    numbers += (networks, batch, in_channels, 0, out_channels, rows, columns, out_rows, out_columns, 1)
    (result,) = emulated.run("convolution", inputs, outputs, *numbers, 0.1, SLOPE)
    result = from_map(result, out_channels)
    judge(result, lambda *x: each_network(block, networks, *x), x, weight, bias, read_scale, read_shift)


# networks, batch, channels of both maps and out, rows and columns in, multiprocessors
UPSAMPLING = [
    (2, 2, 20, 36, 32, 5, 9, 1),  # channels that fill no chunk
    (1, 1, 16, 0, 16, 1, 1, 1),
    (2, 1, 16, 16, 16, 17, 33, 1),  # the narrow kind, several tiles
    (1, 3, 64, 0, 70, 2, 8, 1),
    (1, 1, 96, 32, 128, 3, 5, 132),  # few blocks: sums are split
    (2, 37, 16, 16, 40, 1, 2, 1),
]


@pytest.mark.parametrize(
    ("alignment", "upsampling", "norm_first"),
    [("pytorch", "transposed", True), ("tensorflow", "transposed", False), ("pytorch", "nearest", False)],
)
@each_element(UPSAMPLING)
def test_decoder_block(sizes, alignment, upsampling, norm_first, element, emulated):
    networks, batch, skip_channels, channels, out_channels, rows, columns, multiprocessors = sizes
    skip = rounded(networks, batch, skip_channels, rows, columns, element=element)
    x = rounded(networks, batch, channels, rows, columns, element=element) if channels else None
    in_channels = skip_channels + channels
    shape = (in_channels, out_channels) if upsampling == "transposed" else (out_channels, in_channels)
    weight = rounded(networks, *shape, 5, 5, element=element, scale=in_channels**-0.5 / 3)
    bias = rounded(networks, out_channels, element=element)
    scale = None if norm_first else rounded(networks, out_channels, element=element)
    shift = None if norm_first else rounded(networks, out_channels, element=element)

    def block(skip, x, weight, bias, scale, shift):
        one = torch.ones_like(bias)
        scale, shift = (one, 0 * one) if scale is None else (scale, shift)
        maps = (skip, None) if x is None else (x, skip)
        return reference.decoder_block(*maps, weight, bias, scale, shift, norm_first, alignment, upsampling)

    by_output = weight.transpose(1, 2) if upsampling == "transposed" else weight
    inputs = [by_output.double().contiguous(), to_map(skip, element), to_map(x, element), None, None]
    inputs += [parameter(bias), parameter(scale), parameter(shift), None]
    outputs = [((networks, batch, 2 * rows, 2 * columns, -(-out_channels // 16) * 16), element)]
    numbers = (ELEMENTS.index(element), ALIGNMENTS.index(alignment), int(upsampling == "nearest"), -1)
    numbers += (networks, batch, skip_channels, channels, out_channels, rows, columns, rows, columns, multiprocessors)
    (result,) = emulated.run("convolution", inputs, outputs, *numbers, 0.0, 0.0)
    result = from_map(result, out_channels)
    # Behind a repetition the kernel's taps are sums of the filter's, rounded once more.
    times = 4 if upsampling == "nearest" and element != torch.float32 else 2
    judge(result, lambda *x: each_network(block, networks, *x), skip, x, weight, bias, scale, shift, times=times)


@pytest.mark.parametrize("ending", [SIGMOID, MASKED, ACTIVATED], ids=["sigmoid", "masked", "activated"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(("networks", "batch", "out_channels", "rows", "columns"), [(1, 1, 1, 1, 1), (2, 3, 3, 9, 18)])
def test_mask_block(networks, batch, out_channels, rows, columns, alignment, upsampling, ending, element, emulated):
    skip_channels, channels = 16, 20
    skip = rounded(networks, batch, skip_channels, rows, columns, element=element)
    x = rounded(networks, batch, channels, rows, columns, element=element)
    shape = (skip_channels + channels, out_channels)
    weight = rounded(
        networks, *(shape if upsampling == "transposed" else shape[::-1]), 5, 5, element=element, scale=0.1
    )
    bias, scale, shift = (rounded(networks, out_channels, element=element) for _ in range(3))
    magnitude = torch.rand(batch, out_channels, 2 * rows, 2 * columns)

    def block(skip, x, weight, bias, scale, shift, magnitude):
        if ending == ACTIVATED:
            return reference.decoder_block(x, skip, weight, bias, scale, shift, False, alignment, upsampling)
        mask = reference.mask_block(x, skip, weight, bias, alignment, upsampling)
        return mask * magnitude if ending == MASKED else mask

    activated = ending == ACTIVATED
    by_output = weight.transpose(1, 2) if upsampling == "transposed" else weight
    inputs = [by_output.double().contiguous(), to_map(skip, element), to_map(x, element), None, None, parameter(bias)]
    inputs += [parameter(scale) if activated else None, parameter(shift) if activated else None, magnitude]
    outputs = [((networks, batch, out_channels, 2 * rows, 2 * columns), torch.float32)]
    numbers = (ELEMENTS.index(element), ALIGNMENTS.index(alignment), int(upsampling == "nearest"), ending)
    numbers += (networks, batch, skip_channels, channels, out_channels, rows, columns, rows, columns, 1)
    (result,) = emulated.run("convolution", inputs, outputs, *numbers, 0.0, 0.0 if activated else 1.0)
    times = 4 if upsampling == "nearest" and element != torch.float32 else 2
    every = [magnitude.expand(networks, *magnitude.shape)]
    arguments = [skip, x, weight, bias, scale, shift, *every]
    judge(result.to(element), lambda *x: each_network(block, networks, *x), *arguments, times=times)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(
    ("networks", "batch", "channels", "out_channels", "rows", "columns"),
    [(1, 1, 1, 16, 2, 2), (2, 3, 2, 20, 19, 70), (1, 1, 3, 33, 6, 130)],
)
def test_input_convolution(networks, batch, channels, out_channels, rows, columns, alignment, element, emulated):
    x = torch.rand(batch, channels, rows, columns)
    weight = torch.randn(networks, out_channels, channels, 5, 5) / 5
    bias = torch.randn(networks, out_channels)
    out_rows, out_columns = ((size + (alignment == "pytorch")) // 2 for size in (rows, columns))

    def block(x, weight, bias):
        one = torch.ones_like(bias)
        return reference.encoder_block(x, weight, bias, one, 0 * one, SLOPE, alignment)[1]

    outputs = [((networks, batch, out_rows, out_columns, -(-out_channels // 16) * 16), element)]
    numbers = (ELEMENTS.index(element), ALIGNMENTS.index(alignment), networks, batch, channels, rows, columns)
    numbers += (out_channels, out_rows, out_columns)
    inputs = [weight.double(), x, parameter(bias)]
    (result,) = emulated.run("input_convolution", inputs, outputs, *numbers, SLOPE)
    result = from_map(result, out_channels)
    every = x.expand(networks, *x.shape)
    if element == torch.float32:
        judge(result, lambda *x: each_network(block, networks, *x), every, weight, bias)
    else:  # computed in float, and rounded once
        exact = each_network(block, networks, every.double(), weight.double(), bias.double())
        assert ((result.double() - exact).abs() <= exact.abs() * torch.finfo(element).eps / 2 + 2e-6).all()


@pytest.mark.parametrize("ending", [SIGMOID, MASKED], ids=["sigmoid", "masked"])
@pytest.mark.parametrize(
    ("networks", "batch", "out_channels", "rows", "columns"),
    [(1, 1, 1, 2, 2), (2, 2, 2, 35, 70), (1, 1, 3, 16, 64), (1, 1, 1, 17, 65)],
)
def test_dilated_head(networks, batch, out_channels, rows, columns, ending, emulated):
    x = torch.randn(networks, batch, 1, rows, columns)
    weight, bias = torch.randn(networks, out_channels, 1, 4, 4), torch.randn(networks, out_channels)
    magnitude = torch.rand(batch, out_channels, rows, columns)

    def head(x, weight, bias, magnitude):
        mask = reference.dilated_head(x, weight, bias)
        return mask * magnitude if ending == MASKED else mask

    outputs = [((networks, batch, out_channels, rows, columns), torch.float32)]
    numbers = (ending, networks, batch, out_channels, rows, columns)
    (result,) = emulated.run("dilated_head", [x, weight, bias, magnitude], outputs, *numbers)
    every = magnitude.expand(networks, *magnitude.shape)
    judge(result, lambda *x: each_network(head, networks, *x), x, weight, bias, every)


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
def test_split_sums(multiprocessors, emulated):
    """However many blocks share a sum, small integers come out exactly."""
    x = torch.randint(-2, 3, (1, 2, 256, 4, 4)).float()
    weight = torch.randint(-1, 2, (1, 96, 256, 5, 5)).float()
    bias = torch.randint(-3, 4, (1, 96)).float()
    inputs = [weight.double(), to_map(x, torch.float16), None, None, None, parameter(bias), None, None, None]
    numbers = (0, 0, -1, -1, 1, 2, 256, 0, 96, 4, 4, 2, 2, multiprocessors)
    (result,) = emulated.run("convolution", inputs, [((1, 2, 2, 2, 96), torch.float16)], *numbers, 0.0, 1.0)
    expected = F.conv2d(x[0], weight[0], bias[0], stride=2, padding=2)
    assert torch.equal(from_map(result, 96)[0].float(), expected)


@pytest.mark.parametrize("kib", [163, 99], ids=["sm_80", "sm_86"])
def test_tiles_fit_into_shared_memory(kib, emulated):
    """A map so wide and flat that a whole tile's patch would not fit, and a device that has less."""
    emulated.library.set_facts(132, kib * 1024)
    try:
        for channels, rows, columns in ((32, 2, 520), (64, 4, 300), (96, 34, 40)):
            x = torch.randint(-2, 3, (1, 1, 32, rows, columns)).float()
            weight = torch.randint(-1, 2, (1, channels, 32, 5, 5)).float()
            bias = parameter(torch.zeros(1, channels))
            inputs = [weight.double(), to_map(x, torch.float16), None, None, None, bias, None, None, None]
            numbers = (0, 0, -1, -1, 1, 1, 32, 0, channels, rows, columns, rows // 2, columns // 2, 1)
            outputs = [((1, 1, rows // 2, columns // 2, channels), torch.float16)]
            (result,) = emulated.run("convolution", inputs, outputs, *numbers, 0.0, 1.0, orders=[(0, 0)])
            expected = F.conv2d(x[0], weight[0], stride=2, padding=2)
            assert torch.equal(from_map(result, channels)[0].float(), expected)
    finally:
        emulated.library.set_facts(132, 163 * 1024)


def test_halves_stop_at_their_largest_value(emulated):
    """Infinity times a mask of 0 would be NaN."""
    x = torch.full((1, 1, 16, 2, 2), 60000.0)
    weight = torch.ones(1, 16, 16, 5, 5)
    inputs = [
        weight.double(),
        to_map(x, torch.float16),
        None,
        None,
        None,
        parameter(torch.zeros(1, 16)),
        None,
        None,
        None,
    ]
    numbers = (0, 0, -1, -1, 1, 1, 16, 0, 16, 2, 2, 1, 1, 1)
    (result,) = emulated.run("convolution", inputs, [((1, 1, 1, 1, 16), torch.float16)], *numbers, 0.0, 1.0)
    assert (result == 65504.0).all()


# batch, channels of the coarse and the fine map, rows and columns of the coarse one, multiprocessors
GRADIENTS = [
    (2, 40, 20, 9, 11, 1),  # channels that fill no block, tiles partly outside
    (1, 16, 16, 1, 1, 1),
    (3, 64, 16, 8, 2, 132),  # pixels are shared
    (21, 16, 48, 1, 2, 3),  # more images than a tile has
    (2, 32, 32, 16, 8, 5),
    (17, 16, 16, 4, 1, 2),  # as many images as a tile may have
]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@each_element(GRADIENTS)
def test_weight_gradient(sizes, alignment, element, emulated):
    batch, coarse_channels, fine_channels, rows, columns, multiprocessors = sizes
    coarse = rounded(batch, coarse_channels, rows, columns, element=element)
    fine = rounded(batch, fine_channels, 2 * rows, 2 * columns, element=element)

    def gradient(coarse, fine):
        return of_weight(fine, coarse, alignment)

    maps = [to_map(x[None], element)[0].contiguous() for x in (coarse, fine)]
    outputs = [((coarse_channels, fine_channels, 5, 5), torch.float32)]
    numbers = (ELEMENTS.index(element), ALIGNMENTS.index(alignment), batch, rows, columns)
    (result,) = emulated.run(
        "weight_gradient", maps, outputs, *numbers, coarse_channels, fine_channels, 0, multiprocessors
    )
    judge(result, gradient, coarse, fine)


# batch, channels of the coarse map and planes of the fine one, rows and columns of the coarse map, multiprocessors
PLANE_GRADIENTS = [
    (2, 20, 2, 9, 35, 1),  # channels that only fill up, tiles partly outside
    (1, 16, 1, 1, 1, 132),
    (3, 32, 3, 17, 70, 3),  # pixels are shared
]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@each_element(PLANE_GRADIENTS)
def test_plane_weight_gradient(sizes, alignment, element, emulated):
    batch, coarse_channels, planes, rows, columns, multiprocessors = sizes
    coarse = rounded(batch, coarse_channels, rows, columns, element=element)
    fine = torch.randn(batch, planes, 2 * rows, 2 * columns)

    def gradient(coarse, fine):
        return of_weight(fine, coarse, alignment)

    outputs = [((coarse_channels, planes, 5, 5), torch.float32)]
    numbers = (ELEMENTS.index(element), ALIGNMENTS.index(alignment), batch, rows, columns, coarse_channels, planes, 1)
    maps = [to_map(coarse[None], element)[0].contiguous(), fine]
    (result,) = emulated.run("weight_gradient", maps, outputs, *numbers, multiprocessors)
    judge(result, gradient, coarse, fine)


# upsampling, planes, channels of both maps in, and out
PACKINGS = [(-1, 0, 20, 0, 70), (-1, 0, 16, 0, 20), (0, 0, 20, 36, 32), (0, 0, 16, 0, 70), (0, 0, 16, 3, 16)]
PACKINGS += [(0, 1, 16, 20, 1), (0, 1, 36, 0, 3)]


@pytest.mark.parametrize("by_input", [0, 1])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("kind", PACKINGS)
def test_weights_packed_on_the_device_are_those_packed_on_the_host(kind, alignment, by_input, element, emulated):
    upsampling, planes, *in_channels, out_channels = kind
    weight = torch.randn(out_channels, sum(in_channels), 5, 5)
    sizes = (ELEMENTS.index(element), upsampling, planes, *in_channels, out_channels)
    emulated.library.packed_size.restype = ctypes.c_int64
    packed_bytes = emulated.library.packed_size(*map(ctypes.c_int64, sizes))
    output = [((packed_bytes // element.itemsize,), element)]
    numbers = (sizes[0], ALIGNMENTS.index(alignment), *sizes[1:])
    given = weight.transpose(0, 1).contiguous() if by_input else weight
    (packed,) = emulated.run("pack_on_device", [given], output, *numbers, by_input)
    (expected,) = emulated.run("pack_on_host", [weight.double()], output, *numbers, orders=[(0, 0)])
    assert torch.equal(packed, expected) and packed.any()


@pytest.mark.parametrize(("channels", "out_channels"), [(1, 16), (2, 20), (3, 64)])
def test_first_weights_packed_on_the_device_are_those_packed_on_the_host(channels, out_channels, emulated):
    weight = torch.randn(out_channels, channels, 5, 5)
    output = [((-(-out_channels // 16) * 16 * channels * 25,), torch.float32)]
    (packed,) = emulated.run("pack_input_on_device", [weight], output, channels, out_channels)
    (expected,) = emulated.run("pack_input_on_host", [weight.double()], output, channels, out_channels, orders=[(0, 0)])
    assert torch.equal(packed, expected) and packed.any()


# batch, channels, pixels of an image, slopes, dropout
NORMS = [
    (2, 16, 35, (1.0, 0.2), 0.0),
    (3, 40, 70, (0.0, 1.0), 0.5),  # ReLU first; channels that only fill up
    (1, 512, 67, (1.0, 0.0), 0.1),  # several groups of channels where they are floats; many pixels a thread, in fours
    (1, 16, 2, (1.0, 0.2), 0.0),
    (2, 48, 150, (1.0, 0.0), 0.0),  # several blocks, threads that idle
]


@each_element(NORMS)
def test_norm(sizes, element, emulated):
    batch, channels, pixels, slopes, dropout = sizes
    x = (1 + 2 * torch.randn(batch, channels, pixels, 1)).to(element).float()
    if slopes[0] != 1.0:
        x[:, :, ::9] = 0.0  # where the slope is that of what is below
    gradient = rounded(*x.shape, element=element)
    weight, bias = 1 + 0.1 * torch.randn(channels), torch.randn(channels)
    seeds = torch.arange(batch, dtype=torch.int32) - 7 if dropout else None
    numbers = (1e-5, *slopes, dropout)
    gradient = off_the_kink(gradient, x, weight, bias, *numbers[:2])

    def block(x, weight, bias, gradient):
        inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        y = reference_norm(*inputs, *numbers[:3], seeds, dropout)
        return y, *torch.autograd.grad(y, inputs, gradient)

    def to_pixels(x):
        return padded(x[..., 0].movedim(1, -1), 16).to(element).contiguous()

    wide = torch.cat([to_pixels(gradient)] * 2, -1)  # one map of two
    inputs = [to_pixels(x), padded(weight, 16), padded(bias, 16), wide, seeds]
    filled = padded(weight, 16).shape[0]
    outputs = [((batch, pixels, filled), element), ((filled,), torch.float32), ((filled,), torch.float32)]
    outputs += [((batch, pixels, filled), element), ((filled,), torch.float32), ((filled,), torch.float32)]
    sizes = (ELEMENTS.index(element), batch, pixels, filled, 2 * filled)
    y, mean, variance, of_x, of_weight, of_bias = emulated.run("norm", inputs, outputs, *sizes, *numbers)
    inner = F.leaky_relu(x.double(), slopes[0])
    assert torch.allclose(mean[:channels].double(), inner.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    assert torch.allclose(variance[:channels].double(), inner.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
    made = [from_map(part[None], channels)[0].unsqueeze(-1) for part in (y, of_x)]
    for i, result in enumerate((made[0], made[1], of_weight[:channels], of_bias[:channels])):
        judge(result, lambda *x, i=i: block(*x)[i], x, weight, bias, gradient)


@pytest.mark.parametrize(("parts", "channels"), [(1, 16), (33, 32), (512, 16), (513, 48), (9000, 16)])
def test_statistics_of_many_parts(parts, channels, emulated):
    means, squares = 20 + torch.randn(parts, channels).double(), torch.rand(parts, channels).double()
    counts = torch.randint(1, 300, (parts,)).double()
    moments = torch.stack((means, squares), -1).float()
    outputs = [((channels,), torch.float32)] * 2
    mean, variance = emulated.run("join_statistics", [moments, counts.float()], outputs, parts, channels)
    means, squares = moments.double().unbind(-1)
    true_mean = (counts[:, None] * means).sum(0) / counts.sum()
    true_squares = (squares + counts[:, None] * (means - true_mean).square()).sum(0)
    torch.testing.assert_close(mean.double(), true_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), true_squares / counts.sum(), rtol=1e-6, atol=1e-12)


def test_a_gradient_that_overflows_is_not_finite(emulated):
    """Or whoever scales the loss would not find out."""
    x, gradient = torch.randn(1, 8, 16).half(), torch.full((1, 8, 16), 60_000.0).half()
    gradient[0, 0] = -60_000.0
    inputs = [x, torch.full((16,), 100.0), torch.zeros(16), gradient, None]
    shape, channels = ((1, 8, 16), torch.float16), ((16,), torch.float32)
    outputs = [shape, channels, channels, shape, channels, channels]
    of_x = emulated.run("norm", inputs, outputs, 0, 1, 8, 16, 16, 1e-5, 1.0, 1.0, 0.0)[3]
    assert of_x.isinf().any()
