"""The U-Net's blocks as single ops, at every SIMD level of the processor."""

import functools
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyunetsep import ops
from pyunetsep.ops import kernels, reference
from tests.judge import judge

# F(4, 3) Winograd adds and subtracts inputs before it multiplies, and products of alternating signs after. Next to
# PyTorch's own, its rounding error is 0.2 to 2.4 times as large in the mean over a map, and 3.3 times where channels
# are as few as 32; at the worst of a map's points mostly less than 1.5 times, and up to 3.1 times by luck of the
# numbers. That the transforms themselves are right, small integers show below.
WINOGRAD = 4

WHOLE = 1e-4  # rounding of small integers and their sums; a wrong index changes them by whole numbers, or large parts

ENCODERS = {  # batch, in, out, bins, frames
    "smallest": (8, 1, 1, 2, 2),  # several, for PyTorch's error of one value is luck
    "planes": (2, 2, 16, 34, 20),
    "odd": (2, 17, 5, 13, 7),
    "prime": (1, 19, 37, 31, 29),
    "batch": (3, 32, 64, 16, 24),
    "first of the paper": (1, 1, 16, 512, 128),
    "second of the paper": (1, 16, 32, 256, 64),
    "bottleneck": (1, 256, 512, 16, 4),
    "fourth of the paper, some patches": (8, 64, 128, 64, 16),  # 4x4 tiles of deep sums
    "fifth of the paper, some patches": (8, 128, 256, 32, 8),
    "two columns": (20, 17, 20, 16, 4),  # 4x2 tiles
    "two rows": (20, 17, 20, 4, 16),  # 2x4 tiles
    "streamed planes": (1, 1, 16, 512, 256),  # maps that go past the caches
    "streamed": (1, 16, 32, 256, 256),
    "empty": (0, 16, 32, 8, 8),
}
DECODERS = {  # batch, skip or None, in, out, bins, frames
    "smallest": (8, None, 1, 1, 1, 1),
    "odd": (2, 3, 17, 5, 13, 7),
    "prime": (1, 19, 23, 37, 11, 5),
    "one out": (2, 16, 16, 1, 17, 33),
    "batch": (3, 32, 32, 16, 8, 24),
    "bottleneck": (1, None, 512, 256, 8, 2),
    "second of the paper": (1, 256, 256, 128, 16, 4),
    "fifth of the paper": (1, 32, 32, 16, 128, 32),
    "two columns": (20, 3, 17, 5, 8, 2),
    "two rows": (20, 3, 17, 5, 2, 8),
    "streamed": (1, 16, 16, 16, 64, 128),
    "shared channels": (2, 40, 600, 512, 2, 2),  # weights so large that tasks share the channels out
    "empty": (0, 16, 16, 8, 8, 8),
}
ALIGNMENTS = pytest.mark.parametrize("alignment", ["pytorch", "tensorflow"])
UPSAMPLINGS = pytest.mark.parametrize("upsampling", ["transposed", "nearest"])


def parameters(in_channels, out_channels, taps=5, by_input=False, **like) -> list[Tensor]:
    """Weight, bias, scale and shift of the size that training gives them."""
    shape = (in_channels, out_channels) if by_input else (out_channels, in_channels)
    weight = torch.randn(*shape, taps, taps, **like) * (2 / (taps * taps * in_channels)) ** 0.5
    return [weight, *(torch.randn(out_channels, **like) * 0.1 + centre for centre in (0.0, 1.0, 0.0))]


def decoder_inputs(shape, upsampling, **like):
    batch, skip_channels, channels, out, bins, frames = shape
    x = torch.rand(batch, channels, bins, frames, **like)
    skip = None if skip_channels is None else torch.rand(batch, skip_channels, bins, frames, **like)
    return x, skip, *parameters(channels + (skip_channels or 0), out, by_input=upsampling == "transposed", **like)


# ---- values


@ALIGNMENTS
@pytest.mark.parametrize("shape", ENCODERS.values(), ids=ENCODERS)
def test_encoder_block(shape, alignment, level):
    batch, in_channels, out_channels, bins, frames = shape
    x = torch.rand(batch, in_channels, bins, frames)
    tensors = parameters(in_channels, out_channels)
    results = ops.encoder_block(x, *tensors, slope=0.2, alignment=alignment)
    for i, result in enumerate(results):
        judge(result, lambda *a, i=i: reference.encoder_block(*a)[i], x, *tensors, 0.2, alignment, times=WINOGRAD)
    for result, again in zip(results, ops.encoder_block(x, *tensors, slope=0.2, alignment=alignment), strict=True):
        assert torch.equal(result, again), "not the same bits twice"


@pytest.mark.parametrize("norm_first", [True, False], ids=["norm first", "activation first"])
@UPSAMPLINGS
@ALIGNMENTS
@pytest.mark.parametrize("shape", DECODERS.values(), ids=DECODERS)
def test_decoder_block(shape, alignment, upsampling, norm_first, level):
    inputs = decoder_inputs(shape, upsampling)
    options = {"norm_first": norm_first, "alignment": alignment, "upsampling": upsampling}
    result = ops.decoder_block(*inputs, **options)
    judge(result, reference.decoder_block, *inputs, *options.values(), times=WINOGRAD)
    assert torch.equal(result, ops.decoder_block(*inputs, **options)), "not the same bits twice"


@UPSAMPLINGS
@ALIGNMENTS
@pytest.mark.parametrize(
    "shape", [(1, None, 1, 1, 1, 1), (2, 16, 16, 1, 33, 20), (2, 3, 20, 2, 7, 64), (0, 1, 1, 1, 2, 2)]
)
def test_mask_block(shape, alignment, upsampling, level):
    x, skip, weight, bias, *_ = decoder_inputs(shape, upsampling)
    result = ops.mask_block(x, skip, weight, bias, alignment=alignment, upsampling=upsampling)
    judge(result, reference.mask_block, x, skip, weight, bias, alignment, upsampling)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 3), (1, 1, 7, 131), (1, 1, 64, 1024), (0, 1, 4, 4)])
@pytest.mark.parametrize("out_channels", [1, 2, 3])
def test_dilated_head(shape, out_channels, level):
    weight, bias, *_ = parameters(1, out_channels, taps=4)
    x = torch.randn(shape)
    judge(ops.dilated_head(x, weight, bias), reference.dilated_head, x, weight, bias)


TILES = {  # batch, grid
    "4x4": (1, 24, 20),
    "2x4": (20, 2, 8),
    "4x2": (20, 8, 2),
    "2x2": (1, 4, 4),
    "1x1": (1, 1, 2),
    "a single one": (1, 1, 1),
}


@UPSAMPLINGS
@ALIGNMENTS
@pytest.mark.parametrize(("tile", "grid"), TILES.items(), ids=TILES)
def test_small_integers_come_out_whole(tile, grid, alignment, upsampling, level):
    """An index that is wrong anywhere cannot hide in rounding: there is none but in tiles of four."""
    allowed = WHOLE if "4" in tile else 0.0
    batch, bins, frames = grid
    zeros, ones = torch.zeros(5), torch.ones(5)
    weight = torch.randint(-1, 2, (4, 5, 5, 5)).float()
    weight = weight if upsampling == "transposed" else weight.transpose(0, 1).contiguous()
    x, skip = torch.randint(0, 2, (2, batch, 2, bins, frames)).float()
    y = ops.decoder_block(x, skip, weight, zeros, ones, zeros, alignment=alignment, upsampling=upsampling)
    truth = reference.decoder_block(x, skip, weight, zeros, ones, zeros, True, alignment, upsampling)
    assert (y - truth).abs().max() <= allowed

    weight = torch.zeros(5, 16, 5, 5)  # as many channels as make it a convolution of blocks, not of planes
    weight[:, ::8] = torch.randint(-1, 2, (5, 2, 5, 5)).float()
    x = torch.randint(0, 2, (batch, 16, 2 * bins, 2 * frames)).float()
    raw, _ = ops.encoder_block(x, weight, zeros, ones, zeros, alignment=alignment)
    truth, _ = reference.encoder_block(x, weight, zeros, ones, zeros, 0.2, alignment)
    assert (raw - truth).abs().max() <= allowed


@pytest.mark.parametrize(("alignment", "first"), [("pytorch", 2), ("tensorflow", 1)])
def test_an_impulse_comes_out_where_the_alignment_puts_it(alignment, first, level):
    weight = torch.arange(25.0).reshape(1, 1, 5, 5)
    zero, one = torch.zeros(1), torch.ones(1)
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4, 4] = 1
    raw, _ = ops.encoder_block(x, weight, zero, one, zero, alignment=alignment)
    assert raw[0, 0, 2, 2] == weight[0, 0, first, first]  # output o reads input 2 o - first + k
    up = ops.decoder_block(x, None, weight, zero, one, zero, alignment=alignment)
    expected = torch.zeros(16, 16)
    expected[8 - first : 13 - first, 8 - first : 13 - first] = weight[0, 0]
    torch.testing.assert_close(up[0, 0], expected, rtol=0, atol=1e-4)


def test_nan_and_infinity_stay_within_reach(level):
    x = torch.rand(1, 16, 64, 64)
    x[0, 3, 40, 40] = torch.nan
    tensors = parameters(16, 16)
    _, activated = ops.encoder_block(x, *tensors)
    bad = activated.isnan()
    assert bad[..., 19:22, 19:22].all()
    assert not bad[..., :14, :].any()
    assert not bad[..., 27:, :].any()
    x[0, 3, 40, 40] = torch.inf
    assert not ops.encoder_block(x, *tensors)[1][..., 19:22, 19:22].isfinite().any()
    mask = ops.mask_block(torch.full((1, 16, 4, 4), torch.nan), None, *parameters(16, 1, by_input=True)[:2])
    assert mask.isnan().all()


def test_sigmoid_is_right_to_its_ends(level):
    x = torch.linspace(-110, 110, 4001)[None, None, None]
    weight = torch.zeros(1, 1, 4, 4)
    weight[..., 2, 2] = 1  # output o reads input o + 1
    mask = ops.dilated_head(x.expand(1, 1, 3, -1), weight, torch.zeros(1))[0, 0, 0, :-1]
    expected = torch.sigmoid(x[0, 0, 0, 1:].double())
    assert ((mask - expected).abs() <= 3e-7 * expected + 1e-37).all()


def test_non_contiguous_inputs(level):
    x, skip, *tensors = decoder_inputs((2, 5, 18, 7, 6, 9), "transposed")
    strided = [
        t.flip(-1).flip(-1).mT.contiguous().mT if t.ndim > 1 else t.repeat_interleave(2)[::2]
        for t in (x, skip, *tensors)
    ]
    assert torch.equal(ops.decoder_block(*strided), ops.decoder_block(x, skip, *tensors))
    x, tensors = torch.rand(2, 1, 9, 8), parameters(1, 16)
    assert torch.equal(ops.encoder_block(x.mT.contiguous().mT, *tensors)[0], ops.encoder_block(x, *tensors)[0])


def test_same_bits_for_any_number_of_threads(level):
    encoders = [(torch.rand(batch, i, b, f), *parameters(i, o)) for batch, i, o, b, f in (
        (2, 24, 40, 40, 72), ENCODERS["streamed planes"], ENCODERS["streamed"]
    )]  # fmt: skip
    decoders = [decoder_inputs(shape, "transposed") for shape in (
        (2, 20, 20, 40, 20, 36), DECODERS["streamed"], DECODERS["shared channels"]
    )]  # fmt: skip
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        maps = itertools.chain.from_iterable(itertools.starmap(ops.encoder_block, encoders))
        results.append((*maps, *itertools.starmap(ops.decoder_block, decoders)))
    for other in results[1:]:
        assert all(itertools.starmap(torch.equal, zip(results[0], other, strict=True)))


# ---- elsewhere than in the kernels


def test_other_dtypes_run_in_plain_pytorch():
    x, tensors = torch.rand(1, 3, 8, 8).double(), [t.double() for t in parameters(3, 4)]
    assert torch.equal(ops.encoder_block(x, *tensors)[0], reference.encoder_block(x, *tensors, 0.2, "pytorch")[0])


def every_block(alignment, upsampling, **like) -> Iterator[tuple[str, list[Tensor | None], dict]]:
    """Name, tensors that want gradients, and options."""

    def wanting(*inputs: Tensor | None) -> list[Tensor | None]:
        return [None if x is None else x.requires_grad_() for x in inputs]

    x = torch.rand(2, 3, 6, 8, **like)
    yield "encoder_block", wanting(x, *parameters(3, 4, **like)), {"slope": 0.2, "alignment": alignment}
    options = {"alignment": alignment, "upsampling": upsampling}
    for skips, norm_first in ((2, True), (None, False)):
        inputs = wanting(*decoder_inputs((1, skips, 3, 4, 5, 3), upsampling, **like))
        yield "decoder_block", inputs, {"norm_first": norm_first, **options}
        yield "mask_block", inputs[:4], options
    x = torch.rand(1, 1, 5, 6, **like)
    yield "dilated_head", wanting(x, *parameters(1, 2, taps=4, **like)[:2]), {}


@UPSAMPLINGS
@ALIGNMENTS
def test_gradients_are_those_of_the_reference(alignment, upsampling):
    for name, inputs, options in every_block(alignment, upsampling):
        results = []
        for block in (getattr(ops, name), getattr(reference, name)):
            outputs = block(*inputs, **options)
            last = outputs[-1] if isinstance(outputs, tuple) else outputs  # the encoder's other gets no gradient
            leaves = [x for x in inputs if x is not None]
            results.append(torch.autograd.grad((last * last.detach().cos()).sum(), leaves))
        torch.testing.assert_close(*results)


@UPSAMPLINGS
@ALIGNMENTS
def test_the_reference_in_double(alignment, upsampling):
    for name, inputs, options in every_block(alignment, upsampling, dtype=torch.float64):
        assert torch.autograd.gradcheck(functools.partial(getattr(ops, name), **options), inputs)


def test_opcheck():
    encoder = (torch.rand(2, 3, 7, 8, requires_grad=True), *(t.requires_grad_() for t in parameters(3, 4)))
    torch.library.opcheck(kernels.encoder_block, (*encoder, 0.2, "tensorflow"))
    decoder = [None if t is None else t.requires_grad_() for t in decoder_inputs((2, None, 3, 4, 3, 4), "transposed")]
    torch.library.opcheck(kernels.decoder_block, (*decoder, True, "pytorch", "transposed"))
    torch.library.opcheck(kernels.mask_block, (*decoder[:4], "pytorch", "transposed"))
    head = parameters(1, 2, taps=4)
    torch.library.opcheck(kernels.dilated_head, (torch.rand(1, 1, 5, 6, requires_grad=True), *head[:2]))


def test_compiles_without_a_graph_break():
    x, tensors = torch.rand(1, 3, 8, 8), parameters(3, 4)
    decoder = decoder_inputs((1, 2, 3, 4, 4, 4), "transposed")

    def blocks(x: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return ops.encoder_block(x, *tensors)[1], ops.decoder_block(*decoder)

    compiled = torch.compile(blocks, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(compiled(x, tensors), blocks(x, tensors), strict=True):
        assert torch.equal(ours, expected)


# ---- bad inputs, through pyunetsep.ops with and without kernels and through torch.ops

ONES = torch.ones
OK = {"x": ONES(1, 3, 4, 4), "weight": ONES(2, 3, 5, 5), "bias": ONES(2), "scale": ONES(2), "shift": ONES(2)}
UP = {**OK, "skip": None, "weight": ONES(3, 2, 5, 5)}

BAD_ENCODERS = [
    ({"x": ONES(3, 4, 4)}, ValueError, r"x: got shape \[3, 4, 4\], wants \[batch, channels, bins, frames\]"),
    ({"x": ONES(1, 3, 4, 4).int()}, TypeError, "x: got dtype .*, wants"),
    ({"x": ONES(1, 3, 1, 4)}, ValueError, "x: got shape .*, wants a channel, two bins and two frames at least"),
    ({"x": ONES(1, 4, 4, 4)}, ValueError, r"weight: got shape \[2, 3, 5, 5\], wants \[out, 4, 5, 5\]"),
    ({"weight": ONES(2, 3, 3, 3)}, ValueError, r"weight: got shape \[2, 3, 3, 3\], wants \[out, 3, 5, 5\]"),
    ({"weight": ONES(2, 3, 5, 5).double()}, TypeError, "weight: got dtype .*, wants"),
    ({"bias": ONES(3)}, ValueError, r"bias: got shape \[3\], wants \[2\], the channels out"),
    ({"scale": ONES(1, 2)}, ValueError, r"scale: got shape \[1, 2\], wants \[2\], the channels out"),
    ({"shift": ONES(1)}, ValueError, r"shift: got shape \[1\], wants \[2\], the channels out"),
    ({"slope": 1.5}, ValueError, "slope: got 1.5, wants 0 to 1"),
    ({"alignment": "centred"}, ValueError, "alignment: got 'centred', wants pytorch or tensorflow"),
]
BAD_DECODERS = [
    ({"x": ONES(3, 4, 4)}, ValueError, r"x: got shape \[3, 4, 4\], wants \[batch, channels, bins, frames\]"),
    ({"x": ONES(1, 3, 4, 0)}, ValueError, "x: got shape .*, wants a channel, a bin and a frame at least"),
    ({"skip": ONES(1, 3, 4, 5)}, ValueError, r"skip: got shape \[1, 3, 4, 5\], wants that of x but for the channels"),
    ({"skip": ONES(2, 3, 4, 4)}, ValueError, "skip: got shape .*, wants that of x but for the channels"),
    ({"skip": ONES(1, 3, 4, 4)}, ValueError, r"weight: got shape \[3, 2, 5, 5\], wants \[6, out, 5, 5\]"),
    ({"weight": ONES(2, 3, 5, 5)}, ValueError, r"weight: got shape \[2, 3, 5, 5\], wants \[3, out, 5, 5\]"),
    ({"upsampling": "nearest"}, ValueError, r"weight: got shape \[3, 2, 5, 5\], wants \[out, 3, 5, 5\]"),
    ({"bias": ONES(3)}, ValueError, r"bias: got shape \[3\], wants \[2\], the channels out"),
    ({"alignment": ""}, ValueError, "alignment: got '', wants pytorch or tensorflow"),
    ({"upsampling": "linear"}, ValueError, "upsampling: got 'linear', wants transposed or nearest"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_ENCODERS)
def test_encoder_block_refuses(bad, error, message, monkeypatch):
    arguments = {**OK, "slope": 0.2, "alignment": "pytorch", **bad}
    for enabled in "10":
        monkeypatch.setenv("PYUNETSEP_KERNELS", enabled)
        with pytest.raises(error, match=message):
            ops.encoder_block(**arguments)
    with pytest.raises(error, match=message):
        torch.ops.pyunetsep.encoder_block(**arguments)


@pytest.mark.parametrize(("bad", "error", "message"), BAD_DECODERS)
def test_decoder_block_refuses(bad, error, message, monkeypatch):
    arguments = {**UP, "norm_first": True, "alignment": "pytorch", "upsampling": "transposed", **bad}
    for enabled in "10":
        monkeypatch.setenv("PYUNETSEP_KERNELS", enabled)
        with pytest.raises(error, match=message):
            ops.decoder_block(**arguments)
    with pytest.raises(error, match=message):
        torch.ops.pyunetsep.decoder_block(**arguments)


def test_dilated_head_refuses():
    for op in (ops.dilated_head, torch.ops.pyunetsep.dilated_head):
        with pytest.raises(ValueError, match=r"x: got shape \[1, 2, 4, 4\], wants \[batch, 1, bins, frames\]"):
            op(ONES(1, 2, 4, 4), ONES(1, 1, 4, 4), ONES(1))
        with pytest.raises(ValueError, match=r"weight: got shape \[1, 1, 5, 5\], wants \[out, 1, 4, 4\]"):
            op(ONES(1, 1, 4, 4), ONES(1, 1, 5, 5), ONES(1))
    with pytest.raises(TypeError, match="x: got list, wants a tensor"):
        ops.dilated_head([1.0], ONES(1, 1, 4, 4), ONES(1))
