"""The short-time Fourier transform, and the way back through a mask: on a GPU, and at each SIMD level of the CPU."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyunetsep import _C, ops
from pyunetsep.ops import kernels, reference
from tests.judge import judge
from tests.properties import given, settings, st

SHAPES = {  # leading dimensions, frames, n_fft, hop_length, first_bin, bins
    "one": ((), 1, 32, 8, 0, 17),
    "odd": ((3,), 5, 64, 17, 3, 7),
    "prime": ((2,), 13, 128, 31, 1, 61),
    "batch": ((3, 2), 9, 256, 64, 1, 128),
    "no_overlap": ((2,), 6, 512, 512, 200, 57),
    "paper": ((1,), 33, 1024, 256, 0, 512),
    "long_hop": ((1,), 8, 2048, 1536, 0, 1023),
    "song": ((2,), 21, 4096, 1024, 0, 1024),
    "longest": ((1,), 3, 8192, 2048, 4096, 1),
    "hop_one": ((1,), 40, 32, 1, 0, 1),
    "no_frames": ((2,), 0, 64, 16, 0, 32),
    "no_rows": ((0,), 4, 64, 16, 0, 32),
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
EVERYWHERE = pytest.mark.parametrize(
    ("device", "level"), [*(("cpu", level) for level in _C.simd_levels()), ("cuda", "auto")], indirect=True
)


def wave_inputs(shape, **like) -> tuple[Tensor, Tensor, int, int, int]:
    """Arguments of stft; a few samples too few for another frame lie behind the last."""
    rows, frames, n_fft, hop_length, first_bin, bins = shape
    samples = n_fft - 1 if frames == 0 else (frames - 1) * hop_length + n_fft + (hop_length - 1)
    return torch.randn(*rows, samples, **like), torch.randn(n_fft, **like), hop_length, first_bin, bins


def spectrum_inputs(shape, stems=2, **like) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """Arguments of masked_istft; the spectrum's first and last bin are not real, as those of a wave would be."""
    rows, frames, n_fft, hop_length, first_bin, bins = shape
    leading = (stems, *rows, frames) if stems else (*rows, frames)
    spectrum = torch.view_as_complex(torch.randn(*rows, frames, n_fft // 2 + 1, 2, **like))
    mask, gain = torch.rand(*leading, bins, **like), torch.rand(leading, **like)
    return spectrum, mask, gain, torch.randn(n_fft, **like), hop_length, first_bin


def mask_inputs(shape, stems=2, **like) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]:
    """Arguments of mask_wave; the wave has two more frames than the mask, but the empty one."""
    rows, frames, *_ = shape
    wave, window, *_ = wave_inputs((rows, frames + 2 if frames else 0, *shape[2:]), **like)
    _, mask, gain, synthesis_window, hop_length, first_bin = spectrum_inputs(shape, stems, **like)
    return wave, mask, gain, window, synthesis_window, hop_length, first_bin


def real_masked_istft(spectrum: Tensor, *others) -> Tensor:
    """The reference, of re and im as a last dimension, whose dtype the judge can change."""
    return reference.masked_istft(torch.view_as_complex(spectrum), *others)


# ---- values


@EACH_SHAPE
@EVERYWHERE
def test_stft(shape, device, level, dtype):
    inputs = wave_inputs(shape, dtype=dtype, device=device)
    spectrum, magnitude = ops.stft(*inputs)
    rows, frames, n_fft, *_, bins = shape
    assert spectrum.shape == (*rows, frames, n_fft // 2 + 1)
    assert magnitude.shape == (*rows, frames, bins)
    judge(torch.view_as_real(spectrum), lambda *x: torch.view_as_real(reference.stft(*x)[0]), *inputs)
    judge(magnitude, lambda *x: reference.stft(*x)[1], *inputs)
    again = ops.stft(*inputs)
    assert torch.equal(spectrum, again[0]), "not the same bits twice"
    assert torch.equal(magnitude, again[1]), "not the same bits twice"
    assert torch.equal(magnitude, ops.magnitudes(*inputs))


@pytest.mark.parametrize("stems", [0, 1, 3])
@EACH_SHAPE
@EVERYWHERE
def test_masked_istft(shape, stems, device, level, dtype):
    inputs = spectrum_inputs(shape, stems, dtype=dtype, device=device)
    spectrum_before = inputs[0].clone()
    wave = ops.masked_istft(*inputs)
    assert wave.dtype == dtype
    judge(wave, real_masked_istft, torch.view_as_real(inputs[0]), *inputs[1:])
    assert torch.equal(wave, ops.masked_istft(*inputs)), "not the same bits twice"
    assert torch.equal(inputs[0], spectrum_before)


@pytest.mark.parametrize("stems", [0, 1, 3])
@EACH_SHAPE
@EVERYWHERE
def test_mask_wave(shape, stems, device, level, dtype):
    inputs = mask_inputs(shape, stems, dtype=dtype, device=device)
    wave_before = inputs[0].clone()
    made = ops.mask_wave(*inputs)
    assert made.dtype == dtype
    judge(made, reference.mask_wave, *inputs)
    assert torch.equal(made, ops.mask_wave(*inputs)), "not the same bits twice"
    assert torch.equal(inputs[0], wave_before)


@EVERYWHERE
def test_mask_wave_is_the_way_there_and_back(device, level):
    for shape in (((2,), 7, 64, 16, 2, 20), ((1,), 40, 1024, 256, 0, 512)):
        wave, mask, gain, window, synthesis_window, hop_length, first_bin = mask_inputs(shape, device=device)
        spectrum, _ = ops.stft(wave, window, hop_length, first_bin, 1)
        first = spectrum[..., : mask.shape[-2], :]
        there_and_back = ops.masked_istft(first, mask, gain, synthesis_window, hop_length, first_bin)
        made = ops.mask_wave(wave, mask, gain, window, synthesis_window, hop_length, first_bin)
        torch.testing.assert_close(made, there_and_back, rtol=0, atol=1e-6 * float(made.abs().max()))


@EVERYWHERE
def test_same_bits_however_rows_are_made(device, level):
    """On a GPU more rows make for longer runs of hops in a block."""
    for shape in (((600,), 70, 32, 8, 0, 16), ((40,), 140, 256, 100, 3, 50)):
        spectrum, mask, gain, *others = spectrum_inputs(shape, device=device)
        wave, _, _, window, *_ = mask_inputs(shape, device=device)
        together = ops.masked_istft(spectrum, mask, gain, *others), ops.mask_wave(wave, mask, gain, window, *others)
        for row in (0, shape[0][0] - 1):
            one = slice(row, row + 1)
            alone = (
                ops.masked_istft(spectrum[one], mask[:, one], gain[:, one], *others),
                ops.mask_wave(wave[one], mask[:, one], gain[:, one], window, *others),
            )
            assert all(torch.equal(x[:, one], y) for x, y in zip(together, alone, strict=True))


@settings(max_examples=60)
@given(rows=st.integers(0, 3), frames=st.integers(0, 12), n_fft=st.sampled_from([32, 64, 128, 256]), data=st.data())
def test_transforms_of_any_shape(rows, frames, n_fft, data):
    hop_length = data.draw(st.integers(1, n_fft), label="hop_length")
    first_bin = data.draw(st.integers(0, n_fft // 2), label="first_bin")
    bins = data.draw(st.integers(1, n_fft // 2 + 1 - first_bin), label="bins")
    shape = (rows,), frames, n_fft, hop_length, first_bin, bins
    inputs = wave_inputs(shape)
    for made, expected in zip(ops.stft(*inputs), reference.stft(*inputs), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    inputs = spectrum_inputs(shape)
    torch.testing.assert_close(ops.masked_istft(*inputs), reference.masked_istft(*inputs), rtol=1e-4, atol=1e-4)


@EVERYWHERE
def test_stft_of_an_impulse_and_a_tone_by_hand(device, level, dtype):
    n_fft, at, tone = 64, 5, 9
    b, t = torch.arange(n_fft // 2 + 1, dtype=dtype), torch.arange(n_fft, dtype=dtype)
    impulse = torch.zeros(n_fft, dtype=dtype)
    impulse[at] = 2.0
    waves = torch.stack((impulse, torch.cos(2 * math.pi * tone * t / n_fft)))
    window = torch.full((n_fft,), 0.5, dtype=dtype)
    spectrum, magnitude = ops.stft(waves.to(device), window.to(device), 16, 8, 4)
    phase = -2 * math.pi * at * b / n_fft
    torch.testing.assert_close(spectrum[0, 0].cpu(), torch.polar(torch.ones_like(b), phase))
    torch.testing.assert_close(
        magnitude[1, 0].cpu(), torch.tensor([0, n_fft / 4, 0, 0], dtype=dtype), atol=1e-5, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("first_bin", "mask", "factors"),
    [
        (0, [1, 2], [1, 2] + 15 * [9]),
        (2, [3, 1, 2], [3, 3, 3, 1, 2] + 12 * [9]),
        (15, [4], 16 * [4] + [4]),  # a single bin above the band
        (1, list(range(1, 17)), [1, *range(1, 17)]),  # none above
        (16, [5], 17 * [5]),
    ],
)
@EVERYWHERE
def test_the_mask_is_extended_to_all_bins(first_bin, mask, factors, device, level, dtype):
    wave = torch.randn(32, dtype=dtype, device=device)
    gain, window = torch.full_like(wave[:1], 9.0), torch.ones_like(wave)
    masks = torch.tensor([mask], dtype=dtype, device=device)
    spectrum = torch.fft.rfft(wave)
    expected = spectrum * torch.tensor(factors, device=device)
    for made in (
        ops.masked_istft(spectrum[None], masks, gain, window, 32, first_bin),
        ops.mask_wave(wave, masks, gain, window, window, 32, first_bin),
    ):
        torch.testing.assert_close(torch.fft.rfft(made), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_fft", [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
@EVERYWHERE
def test_the_inverse_gives_back_the_wave(n_fft, device, level):
    """A window whose shifted squares add up to one, on both ways."""
    hop_length = n_fft // 4
    wave = torch.randn(2, 10 * hop_length, device=device)
    window = torch.hann_window(n_fft, device=device) * (2 / 3) ** 0.5
    spectrum, magnitude = ops.stft(wave, window, hop_length, 0, n_fft // 2)
    mask = torch.ones_like(magnitude)
    for back in (
        ops.masked_istft(spectrum, mask, mask[..., 0], window, hop_length, 0),
        ops.mask_wave(wave, mask, mask[..., 0], window, window, hop_length, 0),
    ):
        inside = slice(n_fft - hop_length, hop_length - n_fft)
        torch.testing.assert_close(back[:, inside], wave[:, inside], rtol=0, atol=3e-6)


@EVERYWHERE
def test_nan_stays_within_its_frames(device, level):
    wave, window = torch.randn(1, 256, device=device), torch.ones(64, device=device)
    wave[0, 100] = float("nan")
    spectrum, magnitude = ops.stft(wave, window, 32, 0, 33)
    assert magnitude.isnan().all(-1).tolist() == [[k * 32 <= 100 < k * 32 + 64 for k in range(7)]]
    for back in (
        ops.masked_istft(spectrum, magnitude, magnitude[..., 0], window, 32, 0),
        ops.mask_wave(wave, torch.ones_like(magnitude), magnitude[..., 0], window, window, 32, 0),
    ):
        assert back.isnan().nonzero()[:, 1].tolist() == list(range(64, 160))


# ---- memory layouts, threads


@EVERYWHERE
def test_non_contiguous_inputs(device, level):
    wave, window, *numbers = wave_inputs(((2, 3), 6, 64, 16, 2, 20), device=device)
    expected = ops.stft(wave, window, *numbers)
    runs = torch.cat((wave, wave), -1)[..., : wave.shape[-1]], wave.mT.contiguous().mT, wave.transpose(0, 1)
    for strided in (runs[0], runs[1], runs[2].contiguous().transpose(0, 1)):
        assert not strided.is_contiguous()
        for made, one in zip(ops.stft(strided, window.repeat_interleave(2)[::2], *numbers), expected, strict=True):
            assert torch.equal(made, one)
    repeated = wave[:1, :1].expand(2, 3, -1)
    assert torch.equal(ops.stft(repeated, window, *numbers)[1], ops.stft(repeated.clone(), window, *numbers)[1])

    spectrum, mask, gain, window, *numbers = spectrum_inputs(((2, 3), 6, 64, 16, 2, 20), device=device)
    expected = ops.masked_istft(spectrum, mask, gain, window, *numbers)
    masked = ops.mask_wave(wave, mask, gain, window, window, *numbers)
    odd = torch.cat((window[:1], window))[1:]  # not at a multiple of 8 bytes
    assert torch.equal(ops.masked_istft(spectrum, mask, gain, odd, *numbers), expected)
    assert torch.equal(ops.mask_wave(runs[0], mask, gain, odd, odd, *numbers), masked)
    for strided in (
        (torch.cat((spectrum, spectrum), -2)[..., :6, :], torch.cat((mask, mask), -2)[..., :6, :], gain),
        (torch.cat((spectrum, spectrum), -1)[..., :33], torch.cat((mask, mask), -1)[..., :20], gain),
        (spectrum.mT.contiguous().mT, mask.mT.contiguous().mT, gain.mT.contiguous().mT),
        (spectrum.conj().resolve_conj().conj(), mask.transpose(0, 2).contiguous().transpose(0, 2), gain),
    ):
        assert not strided[1].is_contiguous()
        assert torch.equal(ops.masked_istft(*strided, window, *numbers), expected)
        assert torch.equal(ops.mask_wave(runs[1], *strided[1:], window, window, *numbers), masked)


def test_same_bits_for_any_number_of_threads(level):
    wave = wave_inputs(((3,), 61, 1024, 256, 0, 300))
    spectra = [spectrum_inputs(((3,), 61, 1024, hop_length, 5, 300)) for hop_length in (1, 256, 333, 1024)]
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append((*ops.stft(*wave), *itertools.starmap(ops.masked_istft, spectra)))
    for other in results[1:]:
        assert all(itertools.starmap(torch.equal, zip(results[0], other, strict=True)))


# ---- gradients, torch.compile


@pytest.mark.parametrize("samples", [40, 31])
def test_stft_gradient(samples):
    wave, window = torch.randn(2, samples).double().requires_grad_(), torch.randn(32).double().requires_grad_()
    assert torch.autograd.gradcheck(ops.stft, (wave, window, 4, 3, 5))
    assert torch.autograd.gradgradcheck(lambda *x: ops.stft(*x, 4, 3, 5)[0], (wave, window))


@pytest.mark.parametrize("first_bin", [2, 11])
def test_masked_istft_gradient(first_bin):
    *tensors, window, hop_length, _ = spectrum_inputs(((1,), 2, 32, 12, first_bin, 5), dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (*tensors, window)]
    assert torch.autograd.gradcheck(ops.masked_istft, (*inputs, hop_length, first_bin))
    assert torch.autograd.gradgradcheck(ops.masked_istft, (*inputs, hop_length, first_bin))


@pytest.mark.parametrize("first_bin", [2, 11])
def test_mask_wave_gradient(first_bin):
    *tensors, hop_length, _ = mask_inputs(((1,), 2, 32, 12, first_bin, 5), dtype=torch.float64)
    inputs = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(ops.mask_wave, (*inputs, hop_length, first_bin))


def test_gradients_are_those_of_the_reference(monkeypatch):
    """On the whole way, of some inputs or all, and of gradients."""
    wave, window, *numbers = wave_inputs(((2,), 5, 64, 16, 3, 20))
    gain = torch.rand(2, 5)

    def loss(wave: Tensor, window: Tensor, gain: Tensor) -> Tensor:
        spectrum, magnitude = ops.stft(wave, window, *numbers)
        first = ops.masked_istft(spectrum, magnitude.square(), gain, window, 16, 3)
        mask = ops.magnitudes(wave, window, *numbers)[:, :4]
        return first.square().sum() + ops.mask_wave(wave, mask, gain[:, :4], window, window, 16, 3).square().sum()

    def gradients() -> list[Tensor]:
        found = []
        for inputs in ((wave, window, gain), (wave,), (window,), (gain,)):
            wanted = [x.clone().requires_grad_() for x in inputs]
            given = [next((y for y, x in zip(wanted, inputs, strict=True) if x is z), z) for z in (wave, window, gain)]
            first = torch.autograd.grad(loss(*given), wanted, create_graph=True)
            found += [*first, *torch.autograd.grad(sum(x.square().sum() for x in first), wanted)]
        return found

    ours = gradients()
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    for mine, theirs in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))


def test_opcheck():
    wave, window, *numbers = wave_inputs(((2,), 5, 32, 8, 3, 10), requires_grad=True)
    torch.library.opcheck(kernels.stft, (wave, window, *numbers))
    torch.library.opcheck(kernels.magnitudes, (wave, window, *numbers))
    for stems in (0, 2):
        *tensors, hop_length, first_bin = spectrum_inputs(((2,), 5, 32, 8, 3, 10), stems)
        inputs = [x.detach().requires_grad_() for x in tensors]
        torch.library.opcheck(kernels.masked_istft, (*inputs, hop_length, first_bin))
        *tensors, hop_length, first_bin = mask_inputs(((2,), 5, 32, 8, 3, 10), stems)
        inputs = [x.detach().requires_grad_() for x in tensors]
        torch.library.opcheck(kernels.mask_wave, (*inputs, hop_length, first_bin))


def test_compiles_without_a_graph_break():
    wave, window, *numbers = wave_inputs(((2,), 5, 64, 16, 3, 20))
    wave.requires_grad_()

    def there_and_back(wave: Tensor, window: Tensor) -> Tensor:
        spectrum, magnitude = ops.stft(wave, window, *numbers)
        back = ops.masked_istft(spectrum, magnitude, magnitude[..., 0], window, 16, 3)
        again = ops.magnitudes(wave, window, *numbers)
        return back + ops.mask_wave(wave, again, again[..., 0], window, window, 16, 3)

    made = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")(wave, window)
    assert torch.equal(made, there_and_back(wave, window))
    (compiled,) = torch.autograd.grad(made.sum(), wave)
    (eager,) = torch.autograd.grad(there_and_back(wave, window).sum(), wave)
    torch.testing.assert_close(compiled, eager)


# ---- which path runs


@pytest.mark.parametrize("n_fft", [1, 2, 3, 16, 48, 100, 16384])
def test_other_lengths_take_the_reference(n_fft):
    shape = (2,), 3, n_fft, max(1, n_fft // 4), 0, n_fft // 2 + 1
    inputs = wave_inputs(shape)
    assert all(itertools.starmap(torch.equal, zip(ops.stft(*inputs), reference.stft(*inputs), strict=True)))
    inputs = spectrum_inputs(shape)
    torch.testing.assert_close(ops.masked_istft(*inputs), reference.masked_istft(*inputs))
    inputs = mask_inputs(shape)
    torch.testing.assert_close(ops.mask_wave(*inputs), reference.mask_wave(*inputs))


def test_the_environment_turns_kernels_off(monkeypatch):
    wave, spectrum = wave_inputs(((2,), 5, 64, 16, 3, 20)), spectrum_inputs(((2,), 5, 64, 16, 3, 20))
    masked = mask_inputs(((2,), 5, 64, 16, 3, 20))
    monkeypatch.setenv("PYUNETSEP_KERNELS", "0")
    for name in ("stft", "magnitudes", "masked_istft", "mask_wave"):
        monkeypatch.setattr(kernels, name, None)
    assert torch.equal(ops.stft(*wave)[0], reference.stft(*wave)[0])
    assert torch.equal(ops.magnitudes(*wave), reference.magnitudes(*wave))
    assert torch.equal(ops.masked_istft(*spectrum), reference.masked_istft(*spectrum))
    assert torch.equal(ops.mask_wave(*masked), reference.mask_wave(*masked))


def test_the_extension_exposes_the_bare_functions():
    wave, spectrum = wave_inputs(((2,), 5, 64, 16, 3, 20)), spectrum_inputs(((2,), 5, 64, 16, 3, 20))
    assert all(itertools.starmap(torch.equal, zip(_C.stft(*wave), ops.stft(*wave), strict=True)))
    assert torch.equal(_C.magnitudes(*wave), ops.magnitudes(*wave))
    assert torch.equal(_C.masked_istft(*spectrum), ops.masked_istft(*spectrum))
    masked = mask_inputs(((2,), 5, 64, 16, 3, 20))
    assert torch.equal(_C.mask_wave(*masked), ops.mask_wave(*masked))


# ---- mistakes: (arguments, exception, message), the same with kernels, without, and past the Python checks

ONES = torch.ones
X, W = ONES(2, 100), ONES(32)  # wave, window
S, M, G = ONES(2, 5, 17).cfloat(), ONES(3, 2, 5, 9), ONES(3, 2, 5)  # spectrum, mask, gain
BAD_WAVES = [
    ((X.int(), W, 8, 0, 9), TypeError, "wave: got dtype .*, wants float32"),
    ((X.half(), W.half(), 8, 0, 9), TypeError, "wave: got dtype .*, wants float32"),
    ((ONES(()), W, 8, 0, 9), ValueError, r"wave: got shape \[\], wants \[..., samples\]"),
    ((X, W.double(), 8, 0, 9), TypeError, "window: got dtype .*, wants that of wave, "),
    ((X, ONES(32, device="meta"), 8, 0, 9), ValueError, "window: got device meta, wants that of wave, cpu"),
    ((X, ONES(1, 32), 8, 0, 9), ValueError, r"window: got shape \[1, 32\], wants \[n_fft\]"),
    ((X, ONES(0), 8, 0, 9), ValueError, r"window: got shape \[0\], wants \[n_fft\]"),
    ((X, W, 0, 0, 9), ValueError, "hop_length: got 0, wants 1 to n_fft, 32"),
    ((X, W, 33, 0, 9), ValueError, "hop_length: got 33, wants 1 to n_fft, 32"),
    ((X, W, 8, -1, 9), ValueError, "first_bin, bins: got -1, 9, wants a band of the 17 bins"),
    ((X, W, 8, 0, 0), ValueError, "first_bin, bins: got 0, 0, wants a band of the 17 bins"),
    ((X, W, 8, 9, 9), ValueError, "first_bin, bins: got 9, 9, wants a band of the 17 bins"),
]
BAD_SPECTRA = [
    ((S, M.int(), G, W, 8, 0), TypeError, "mask: got dtype .*, wants float32"),
    ((S.cdouble(), M, G, W, 8, 0), TypeError, "spectrum: got dtype .*, wants .*complex64, with mask of .*float32"),
    ((S.real, M, G, W, 8, 0), TypeError, "spectrum: got dtype .*, wants .*complex64, with mask of .*float32"),
    ((S, M, G.double(), W, 8, 0), TypeError, "gain: got dtype .*, wants that of mask, "),
    ((S, M, G, W.double(), 8, 0), TypeError, "window: got dtype .*, wants that of mask, "),
    ((S.to("meta"), M, G, W, 8, 0), ValueError, "spectrum: got device meta, wants that of mask, cpu"),
    ((S, M, G, ONES(1, 32), 8, 0), ValueError, r"window: got shape \[1, 32\], wants \[n_fft\]"),
    ((S, M, G, ONES(64), 8, 0), ValueError, r"spectrum: got shape \[2, 5, 17\], wants \[..., frames, 33\], n_fft"),
    ((S[0, 0], M, G, W, 8, 0), ValueError, r"spectrum: got shape \[17\], wants \[..., frames, 17\], n_fft"),
    ((S, M[0, 0], G, W, 8, 0), ValueError, r"mask: got shape \[5, 9\], wants that of spectrum, \[2, 5, 17\], but"),
    ((S, M[None], G, W, 8, 0), ValueError, r"mask: got shape \[1, 3, 2, 5, 9\], wants that of spectrum"),
    ((S, M[:, :, 1:], G, W, 8, 0), ValueError, r"mask: got shape \[3, 2, 4, 9\], wants that of spectrum"),
    ((S, M, G[0], W, 8, 0), ValueError, r"gain: got shape \[2, 5\], wants that of mask without bins, \[3, 2, 5\]"),
    ((S, M, G, W, 0, 0), ValueError, "hop_length: got 0, wants 1 to n_fft, 32"),
    ((S, M, G, W, 8, -1), ValueError, "first_bin, bins: got -1, 9, wants a band of the 17 bins"),
    ((S, M, G, W, 8, 9), ValueError, "first_bin, bins: got 9, 9, wants a band of the 17 bins"),
    ((S, M[..., :0], G, W, 8, 0), ValueError, "first_bin, bins: got 0, 0, wants a band of the 17 bins"),
]
# with X, of 9 frames at hop 8: M and G are for 5
BAD_MASKS = [
    ((X.int(), M, G, W, W, 8, 0), TypeError, "wave: got dtype .*, wants float32"),
    ((ONES(()), M, G, W, W, 8, 0), ValueError, r"wave: got shape \[\], wants \[..., samples\]"),
    ((X, M.double(), G, W, W, 8, 0), TypeError, "mask: got dtype .*, wants that of wave, "),
    ((X, M, G.double(), W, W, 8, 0), TypeError, "gain: got dtype .*, wants that of wave, "),
    ((X, M, G, W.double(), W, 8, 0), TypeError, "window: got dtype .*, wants that of wave, "),
    ((X, M, G, W, W.double(), 8, 0), TypeError, "synthesis_window: got dtype .*, wants that of wave, "),
    ((X, M, G, W, ONES(64), 8, 0), ValueError, r"synthesis_window: got shape \[64\], wants that of window, \[32\]"),
    ((X, M.to("meta"), G, W, W, 8, 0), ValueError, "mask: got device meta, wants that of wave, cpu"),
    ((X, M, G, ONES(1, 32), W, 8, 0), ValueError, r"window: got shape \[1, 32\], wants \[n_fft\]"),
    ((X, M[0, 0], G, W, W, 8, 0), ValueError, r"mask: got shape \[5, 9\], wants that of wave, \[2, 100\], but"),
    ((X, M[None], G, W, W, 8, 0), ValueError, r"mask: got shape \[1, 3, 2, 5, 9\], wants that of wave"),
    ((X, M[:, 1:], G, W, W, 8, 0), ValueError, r"mask: got shape \[3, 1, 5, 9\], wants that of wave"),
    ((X, M, G[0], W, W, 8, 0), ValueError, r"gain: got shape \[2, 5\], wants that of mask without bins, \[3, 2, 5\]"),
    ((X[:, :63], M, G, W, W, 8, 0), ValueError, "mask: got 5 frames, wants at most those of the wave, 4"),
    ((X[:, :31], M, G, W, W, 8, 0), ValueError, "mask: got 5 frames, wants at most those of the wave, 0"),
    ((X, M, G, W, W, 33, 0), ValueError, "hop_length: got 33, wants 1 to n_fft, 32"),
    ((X, M, G, W, W, 8, 9), ValueError, "first_bin, bins: got 9, 9, wants a band of the 17 bins"),
]
MISTAKES = [(op, *mistake) for op in ("stft", "magnitudes") for mistake in BAD_WAVES]
MISTAKES += [("masked_istft", *mistake) for mistake in BAD_SPECTRA] + [("mask_wave", *mistake) for mistake in BAD_MASKS]


@pytest.mark.parametrize(("op", "arguments", "error", "message"), MISTAKES)
def test_ops_refuse(op, arguments, error, message, monkeypatch):
    for enabled in "10":
        monkeypatch.setenv("PYUNETSEP_KERNELS", enabled)
        with pytest.raises(error, match=message):
            getattr(ops, op)(*arguments)
    if all(x.device.type != "meta" for x in arguments if isinstance(x, Tensor)):  # torch itself refuses to mix these
        with pytest.raises(error, match=message):
            getattr(torch.ops.pyunetsep, op)(*arguments)


def test_the_kernels_refuse_what_they_cannot_do():
    with pytest.raises(TypeError, match="wave: got dtype Double, wants float32"):
        torch.ops.pyunetsep.stft(X.double(), W.double(), 8, 0, 9)
    for n_fft in (16, 48, 16384):
        with pytest.raises(
            ValueError, match=rf"window: got shape \[{n_fft}\], wants \[n_fft\], a power of two from 32"
        ):
            torch.ops.pyunetsep.stft(X, ONES(n_fft), 8, 0, 9)


def test_ops_refuse_what_is_no_tensor_or_number():
    with pytest.raises(TypeError, match="wave: got list, wants a tensor"):
        ops.stft([1.0], W, 8, 0, 9)
    with pytest.raises(TypeError, match="window: got list, wants a tensor"):
        ops.stft(X, [1.0], 8, 0, 9)
    with pytest.raises(TypeError, match="hop_length: got float, wants int"):
        ops.stft(X, W, 8.0, 0, 9)
    with pytest.raises(TypeError, match="first_bin: got float, wants int"):
        ops.stft(X, W, 8, 0.0, 9)
    with pytest.raises(TypeError, match="bins: got str, wants int"):
        ops.stft(X, W, 8, 0, "9")
    with pytest.raises(TypeError, match="mask: got float, wants a tensor"):
        ops.masked_istft(S, 1.0, G, W, 8, 0)
    with pytest.raises(TypeError, match="spectrum: got NoneType, wants a tensor"):
        ops.masked_istft(None, M, G, W, 8, 0)
    with pytest.raises(TypeError, match="gain: got float, wants a tensor"):
        ops.mask_wave(X, M, 1.0, W, W, 8, 0)
