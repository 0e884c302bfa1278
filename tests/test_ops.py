import itertools

import pytest
import torch
from torch import Tensor

from pyunetsep import _C, ops
from pyunetsep.ops import kernels, reference
from tests.judge import judge
from tests.properties import given, settings, st

EPSILON = 1e-10

MASK_SHAPES = {
    "one": (1, 1),
    "no_axes": (3,),
    "odd": (3, 5, 7),
    "prime": (2, 1031),
    "patch": (2, 512, 128),
    "batch": (4, 3, 2, 33, 17),
    "empty": (2, 0, 5),
}
FRAMES = {  # shape of frames, hop_length
    "one": ((1, 1), 1),
    "odd": ((3, 5, 7), 3),
    "prime": ((2, 13, 31), 7),
    "song": ((2, 21, 4096), 1024),
    "paper": ((1, 33, 1024), 768),
    "batch": ((3, 2, 9, 16), 4),
    "hop_one": ((1, 40, 12), 1),
    "no_overlap": ((2, 6, 10), 10),
    "no_frames": ((2, 0, 8), 4),
    "no_rows": ((0, 4, 8), 4),
}


def mask_inputs(shape: tuple[int, ...], mixture: bool, **like) -> tuple[Tensor, Tensor | None]:
    """Magnitudes, and a mixture that is louder than their sum at some points and softer at others."""
    magnitudes = torch.rand(shape, **like)
    return magnitudes, magnitudes.sum(0) * (0.5 + torch.rand(shape[1:], **like)) if mixture else None


# ---- ratio_mask: values


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5, 0.5])
@pytest.mark.parametrize("mixture", [False, True], ids=["stems", "mixture"])
@pytest.mark.parametrize("shape", MASK_SHAPES.values(), ids=MASK_SHAPES)
def test_ratio_mask(shape, mixture, power, device, dtype):
    magnitudes, whole = mask_inputs(shape, mixture, device=device, dtype=dtype)
    masks = ops.ratio_mask(magnitudes, whole, power=power)
    assert masks.dtype == dtype
    judge(masks, reference.ratio_mask, magnitudes, whole, power, EPSILON)
    assert torch.equal(masks, ops.ratio_mask(magnitudes, whole, power=power)), "not the same bits twice"


def test_ratio_mask_is_spleeters_formula(device, dtype):
    # Amplitudes 3 and 1, exponent 2, epsilon 2: (9 + 2/2) / (10 + 2) and (1 + 2/2) / (10 + 2).
    magnitudes = torch.tensor([[3.0], [1.0]], device=device, dtype=dtype)
    masks = ops.ratio_mask(magnitudes, epsilon=2.0)
    torch.testing.assert_close(masks, torch.tensor([[10 / 12], [2 / 12]], device=device, dtype=dtype))


def test_ratio_mask_with_the_rest_by_hand(device, dtype):
    # Mixture 6 leaves 6 - 3 - 1 = 2 as a third part: (9 + 3/3) / (9 + 1 + 4 + 3); mixture 1 leaves nothing.
    magnitudes = torch.tensor([[3.0, 3.0], [1.0, 1.0]], device=device, dtype=dtype)
    masks = ops.ratio_mask(magnitudes, torch.tensor([6.0, 1.0], device=device, dtype=dtype), epsilon=3.0)
    torch.testing.assert_close(masks, torch.tensor([[10 / 17, 10 / 13], [2 / 17, 2 / 13]], device=device, dtype=dtype))


def test_ratio_mask_of_one_soft_mask_gives_it_back(device, dtype):
    mixture, mask = torch.rand(2, 100, device=device, dtype=dtype).unbind()
    again = ops.ratio_mask((mask * mixture)[None], mixture, power=1.0, epsilon=1e-12)
    torch.testing.assert_close(again, mask[None], atol=1e-4 if dtype == torch.float32 else 1e-8, rtol=0)


def test_ratio_masks_sum_to_one_and_share_silence(device, dtype):
    magnitudes = torch.rand(5, 40, device=device, dtype=dtype)
    magnitudes[:, :10] = 0
    masks = ops.ratio_mask(magnitudes)
    torch.testing.assert_close(masks.sum(0), torch.ones(40, device=device, dtype=dtype))
    torch.testing.assert_close(masks[:, :10], torch.full((5, 10), 0.2, device=device, dtype=dtype))


def test_ratio_mask_keeps_nan(device):
    magnitudes = torch.tensor([[1.0, 1.0], [1.0, 1.0]], device=device)
    mixture = torch.tensor([float("nan"), 3.0], device=device)
    assert ops.ratio_mask(magnitudes, mixture).isnan().tolist() == [[True, False], [True, False]]


# ---- overlap_add: values


@pytest.mark.parametrize(("shape", "hop_length"), FRAMES.values(), ids=FRAMES)
def test_overlap_add(shape, hop_length, device, dtype):
    frames = torch.randn(shape, device=device, dtype=dtype)
    window = torch.randn(shape[-1], device=device, dtype=dtype)
    wave = ops.overlap_add(frames, window, hop_length)
    assert wave.dtype == dtype
    judge(wave, reference.overlap_add, frames, window, hop_length)
    assert torch.equal(wave, ops.overlap_add(frames, window, hop_length)), "not the same bits twice"


def test_overlap_add_by_hand(device, dtype):
    frames = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device=device, dtype=dtype)
    window = torch.tensor([1.0, 10.0, 100.0], device=device, dtype=dtype)
    assert ops.overlap_add(frames, window, 2).tolist() == [1, 20, 304, 50, 600]


@pytest.mark.parametrize("n_fft", [8, 12])
def test_overlap_add_inverts_a_stft(n_fft, device):
    """A window whose shifted squares add up to one, on both ways, gives the wave back."""
    hop_length = n_fft // 4
    wave = torch.randn(10 * hop_length, device=device, dtype=torch.float64)
    window = torch.hann_window(n_fft, device=device, dtype=torch.float64) * (2 / 3) ** 0.5
    frames = wave.unfold(-1, n_fft, hop_length) * window
    inside = slice(n_fft - hop_length, 1 - n_fft + hop_length)
    torch.testing.assert_close(ops.overlap_add(frames, window, hop_length)[inside], wave[inside])


@settings(max_examples=60)
@given(rows=st.integers(0, 3), frames=st.integers(0, 40), n_fft=st.integers(1, 300), data=st.data())
def test_overlap_add_of_any_shape_is_the_transpose_of_framing(rows, frames, n_fft, data):
    """<overlap_add(x), y> = <x, framed y> for all shapes, on integers, where float64 is exact."""
    hop_length = data.draw(st.integers(1, n_fft), label="hop_length")
    x = torch.randint(-9, 10, (rows, frames, n_fft)).double()
    window = torch.randint(-9, 10, (n_fft,)).double()
    wave = ops.overlap_add(x, window, hop_length)
    assert wave.shape == (rows, (frames - 1) * hop_length + n_fft if frames else 0)
    y = torch.randint(-9, 10, wave.shape).double()
    framed = y.unfold(-1, n_fft, hop_length) * window if frames else torch.zeros_like(x)
    assert (wave * y).sum() == (x * framed).sum()


# ---- both ops: memory layouts, threads, gradients, torch.compile


def test_non_contiguous_inputs(device, dtype):
    magnitudes, mixture = mask_inputs((3, 5, 7), True, device=device, dtype=dtype)
    shuffled = magnitudes.permute(2, 1, 0).contiguous().permute(2, 1, 0), mixture.mT.contiguous().mT
    assert not shuffled[0].is_contiguous()
    assert torch.equal(ops.ratio_mask(*shuffled), ops.ratio_mask(magnitudes, mixture))
    frames, window = torch.randn(2, 6, 8, device=device, dtype=dtype), torch.randn(8, device=device, dtype=dtype)
    strided = frames.mT.contiguous().mT, window.repeat_interleave(2)[::2]
    assert not strided[0].is_contiguous()
    assert torch.equal(ops.overlap_add(*strided, 3), ops.overlap_add(frames, window, 3))
    expanded = torch.ones((), device=device, dtype=dtype).expand(2, 6, 8)
    assert torch.equal(ops.overlap_add(expanded, window, 3), ops.overlap_add(expanded.clone(), window, 3))


def test_same_bits_for_any_number_of_threads():
    magnitudes, mixture = mask_inputs((3, 2, 513, 97), True)
    frames, window = torch.randn(3, 50, 2048), torch.randn(2048)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((ops.ratio_mask(magnitudes, mixture, power=1.5), ops.overlap_add(frames, window, 500)))
    for other in results[1:]:
        assert all(itertools.starmap(torch.equal, zip(results[0], other, strict=True)))


@pytest.mark.parametrize("power", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("mixture", [False, True], ids=["stems", "mixture"])
def test_ratio_mask_gradient(mixture, power, device):
    magnitudes, whole = mask_inputs((2, 3, 2), mixture, device=device, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (magnitudes + 0.1, whole) if x is not None]

    def masks(*tensors: Tensor) -> Tensor:
        return ops.ratio_mask(*tensors, power=power, epsilon=1e-3)

    assert torch.autograd.gradcheck(masks, inputs)
    assert torch.autograd.gradgradcheck(masks, inputs)


@pytest.mark.parametrize(("shape", "hop_length"), [((2, 3, 5), 2), ((4, 3), 3), ((1, 1), 1), ((2, 0, 4), 2)])
def test_overlap_add_gradient(shape, hop_length, device):
    frames = torch.randn(shape, device=device, dtype=torch.float64, requires_grad=True)
    window = torch.randn(shape[-1], device=device, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.overlap_add, (frames, window, hop_length))
    assert torch.autograd.gradgradcheck(ops.overlap_add, (frames, window, hop_length))


def test_gradients_are_those_of_the_reference(device, dtype, monkeypatch):
    """At the kinks too: silence, and a mixture that leaves nothing."""

    def gradients() -> list[Tensor]:
        magnitudes = torch.tensor([[0.0, 0.0, 1.0, 3.0], [0.0, 2.0, 0.0, 1.0]], device=device, dtype=dtype)
        mixture = torch.tensor([0.0, 2.0, 5.0, 1.0], device=device, dtype=dtype)
        inputs = [magnitudes.requires_grad_(), mixture.requires_grad_()]
        loss = sum((ops.ratio_mask(*inputs, power=p) * magnitudes.detach().cos()).sum() for p in (1.0, 2.0, 1.5))
        return list(torch.autograd.grad(loss, inputs))

    ours = gradients()
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    for mine, theirs in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_opcheck(device, dtype):
    like = {"device": device, "dtype": dtype, "requires_grad": True}
    magnitudes, mixture = torch.rand(2, 3, 4, **like), torch.rand(3, 4, **like)
    torch.library.opcheck(kernels.ratio_mask, (magnitudes, mixture, 2.0, EPSILON))
    torch.library.opcheck(kernels.ratio_mask, (magnitudes, None, 1.5, EPSILON))
    torch.library.opcheck(kernels.overlap_add, (torch.rand(2, 5, 6, **like), torch.rand(6, **like), 2))


def test_compiles_without_a_graph_break(device):
    magnitudes, mixture = mask_inputs((2, 3, 4), True, device=device)
    frames, window = torch.rand(2, 5, 6, device=device, requires_grad=True), torch.rand(6, device=device)

    def both(magnitudes: Tensor, mixture: Tensor, frames: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        return ops.ratio_mask(magnitudes, mixture), ops.overlap_add(frames, window, 2)

    inputs = (magnitudes, mixture, frames, window)
    masks, wave = torch.compile(both, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(masks, ops.ratio_mask(magnitudes, mixture))
    assert torch.equal(wave, ops.overlap_add(frames, window, 2))
    (compiled,) = torch.autograd.grad(wave.sum(), frames)
    (eager,) = torch.autograd.grad(ops.overlap_add(frames, window, 2).sum(), frames)
    assert torch.equal(compiled, eager)


# ---- which path runs


def test_the_environment_turns_kernels_off(monkeypatch):
    magnitudes, frames, window = torch.rand(2, 9), torch.rand(2, 5, 6), torch.rand(6)
    assert ops.kernels_enabled()
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    monkeypatch.setattr(kernels, "ratio_mask", None)
    monkeypatch.setattr(kernels, "overlap_add", None)
    assert not ops.kernels_enabled()
    assert torch.equal(ops.ratio_mask(magnitudes), reference.ratio_mask(magnitudes, None, 2.0, EPSILON))
    assert torch.equal(ops.overlap_add(frames, window, 2), reference.overlap_add(frames, window, 2))
    monkeypatch.setenv("PYUNETSEP_KERNELS", "yes")
    with pytest.raises(ValueError, match="PYUNETSEP_KERNELS: got 'yes', wants 0 or 1"):
        ops.ratio_mask(magnitudes)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_other_dtypes_take_the_reference(half, device):
    frames, window = torch.rand(2, 5, 6, device=device, dtype=half), torch.rand(6, device=device, dtype=half)
    assert torch.equal(ops.overlap_add(frames, window, 2), reference.overlap_add(frames, window, 2))
    assert ops.ratio_mask(frames, epsilon=1e-3).dtype == half


def test_build_info():
    info = ops.build_info()
    assert torch.__version__.startswith(info["torch"])
    assert info["cuda"] == bool(info["cuda_toolkit"]) == bool(info["cuda_architectures"])


# ---- mistakes: (op, arguments, exception, message), the same with kernels, without, and past the Python checks

ONES = torch.ones
BAD_MASKS = [
    ((ONES(2, 3).int(), None, 2.0, 1.0), TypeError, "magnitudes: got dtype .*, wants"),
    ((ONES(2, 3).cfloat(), None, 2.0, 1.0), TypeError, "magnitudes: got dtype .*, wants"),
    ((ONES(()), None, 2.0, 1.0), ValueError, r"magnitudes: got shape \[\], wants \[stems, ...\] with at least"),
    ((ONES(0, 3), None, 2.0, 1.0), ValueError, r"magnitudes: got shape \[0, 3\], wants \[stems, ...\]"),
    ((ONES(2, 3), ONES(3).double(), 2.0, 1.0), TypeError, "mixture: got dtype .*, wants that of magnitudes, "),
    ((ONES(2, 3), ONES(3, device="meta"), 2.0, 1.0), ValueError, "mixture: got device meta, wants that of magn.*, cpu"),
    ((ONES(2, 3), ONES(1), 2.0, 1.0), ValueError, r"mixture: got shape \[1\], wants that of one stem, \[3\]"),
    ((ONES(2, 3), ONES(2, 3), 2.0, 1.0), ValueError, r"mixture: got shape \[2, 3\], wants that of one stem, \[3\]"),
    ((ONES(2, 3), None, 0.0, 1.0), ValueError, "power: got 0.*, wants a finite number above 0"),
    ((ONES(2, 3), None, float("nan"), 1.0), ValueError, "power: got nan, wants a finite number above 0"),
    ((ONES(2, 3), None, 2.0, 0.0), ValueError, "epsilon: got 0.*, wants a finite number above 0"),
    ((ONES(2, 3), None, 2.0, float("inf")), ValueError, "epsilon: got inf, wants a finite number above 0"),
]
BAD_FRAMES = [
    ((ONES(2, 3).int(), ONES(3), 1), TypeError, "frames: got dtype .*, wants"),
    ((ONES(3), ONES(3), 1), ValueError, r"frames: got shape \[3\], wants \[..., frames, n_fft\]"),
    ((ONES(2, 3), ONES(3).double(), 1), TypeError, "window: got dtype .*, wants that of frames, "),
    ((ONES(2, 3), ONES(3, device="meta"), 1), ValueError, "window: got device meta, wants that of frames, cpu"),
    ((ONES(2, 3), ONES(2), 1), ValueError, r"window: got shape \[2\], wants \[3\], the length of a frame"),
    ((ONES(2, 3), ONES(1, 3), 1), ValueError, r"window: got shape \[1, 3\], wants \[3\]"),
    ((ONES(2, 3), ONES(3), 0), ValueError, "hop_length: got 0, wants 1 to n_fft, 3"),
    ((ONES(2, 3), ONES(3), 4), ValueError, "hop_length: got 4, wants 1 to n_fft, 3"),
    ((ONES(2, 0), ONES(0), 1), ValueError, "hop_length: got 1, wants 1 to n_fft, 0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_MASKS)
def test_ratio_mask_refuses(arguments, error, message, monkeypatch):
    magnitudes, mixture, power, epsilon = arguments
    for enabled in "10":
        monkeypatch.setenv("PYUNETSEP_KERNELS", enabled)
        with pytest.raises(error, match=message):
            ops.ratio_mask(magnitudes, mixture, power=power, epsilon=epsilon)
    if mixture is None or mixture.device.type != "meta":  # torch itself refuses to mix these
        with pytest.raises(error, match=message):
            torch.ops.pyunetsep.ratio_mask(*arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_FRAMES)
def test_overlap_add_refuses(arguments, error, message, monkeypatch):
    for enabled in "10":
        monkeypatch.setenv("PYUNETSEP_KERNELS", enabled)
        with pytest.raises(error, match=message):
            ops.overlap_add(*arguments)
    if arguments[1].device.type != "meta":
        with pytest.raises(error, match=message):
            torch.ops.pyunetsep.overlap_add(*arguments)


def test_ops_refuse_what_is_no_tensor_or_number():
    ones = torch.ones(2, 3)
    with pytest.raises(TypeError, match="magnitudes: got list, wants a tensor"):
        ops.ratio_mask([[1.0]])
    with pytest.raises(TypeError, match="mixture: got float, wants a tensor"):
        ops.ratio_mask(ones, 1.0)
    with pytest.raises(TypeError, match="power: got str, wants a number"):
        ops.ratio_mask(ones, power="2")
    with pytest.raises(TypeError, match="window: got list, wants a tensor"):
        ops.overlap_add(ones, [1.0], 1)
    with pytest.raises(TypeError, match="hop_length: got float, wants int"):
        ops.overlap_add(ones, ones[0], 1.0)


def test_the_extension_exposes_the_bare_functions():
    magnitudes, frames, window = torch.rand(2, 3, 4), torch.rand(5, 8), torch.rand(8)
    assert torch.equal(_C.ratio_mask(magnitudes, None, 2.0, 1e-10), ops.ratio_mask(magnitudes))
    assert torch.equal(_C.overlap_add(frames, window, 2), ops.overlap_add(frames, window, 2))
    with pytest.raises(ValueError, match=r"window: got shape \[7\], wants \[8\]"):
        _C.overlap_add(frames, window[1:], 2)
