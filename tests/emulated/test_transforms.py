"""stft.cu, masked_istft.cu and mask_wave.cu on the host."""

import pytest
import torch
from torch import Tensor

from pyunetsep.ops import reference
from tests.emulated.library import Emulated
from tests.judge import judge

SHAPES = [  # stems, rows, frames, n_fft, hop_length, first_bin, bins
    (2, 2, 5, 32, 8, 0, 16),
    (1, 3, 261, 32, 7, 3, 5),  # more frames than a block has teams, and odd hops
    (3, 1, 1, 64, 64, 0, 33),
    (2, 3, 37, 64, 48, 1, 30),
    (1, 2, 30, 128, 1, 63, 1),
    (2, 1, 40, 256, 64, 0, 128),  # several runs
    (1, 1, 9, 256, 192, 128, 1),
    (4, 3, 7, 512, 129, 5, 200),
    (1, 1, 20, 512, 512, 0, 257),
    (2, 1, 23, 1024, 256, 0, 512),
    (1, 2, 4, 1024, 768, 2, 511),
    (2, 2, 7, 2048, 512, 9, 1015),
    (1, 3, 3, 2048, 2047, 1024, 1),
    (2, 1, 17, 4096, 1024, 0, 1024),
    (5, 1, 2, 4096, 4096, 2048, 1),  # more stems than are made at once
    (2, 1, 5, 8192, 2048, 1, 2000),
    (1, 2, 2, 8192, 6143, 0, 4097),
]
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))


def a_wave(rows: int, frames: int, n_fft: int, hop_length: int) -> Tensor:
    """Random rows, of which a few samples belong to no frame."""
    return torch.randn(rows, (frames - 1) * hop_length + n_fft + hop_length // 2)


def masks(stems: int, rows: int, frames: int, bins: int) -> tuple[Tensor, Tensor]:
    return torch.rand(stems, rows, frames, bins), torch.rand(stems, rows, frames)


def real_stft(*inputs) -> Tensor:
    return torch.view_as_real(reference.stft(*inputs)[0])


def real_masked_istft(spectrum: Tensor, *others) -> Tensor:
    return reference.masked_istft(torch.view_as_complex(spectrum), *others)


def masked_wave(wave, mask, gain, window, synthesis_window, hop_length, first_bin) -> Tensor:
    spectrum, _ = reference.stft(wave, window, hop_length, 0, 1)
    return reference.masked_istft(
        spectrum[..., : mask.shape[-2], :], mask, gain, synthesis_window, hop_length, first_bin
    )


@EACH_SHAPE
def test_stft(shape, emulated: Emulated):
    _, rows, frames, n_fft, hop_length, first_bin, bins = shape
    wave, window = a_wave(rows, frames, n_fft, hop_length), torch.randn(n_fft)
    numbers = rows, frames, wave.shape[-1], n_fft, hop_length, first_bin, bins
    band = (rows, frames, bins), torch.float32
    whole = (rows, frames, n_fft // 2 + 1, 2), torch.float32
    magnitude, spectrum = emulated.run("stft", [wave, window], [band, whole], *numbers)
    judge(spectrum, real_stft, wave, window, hop_length, first_bin, bins)
    judge(magnitude, lambda *x: reference.stft(*x)[1], wave, window, hop_length, first_bin, bins)
    (alone,) = emulated.run("magnitudes", [wave, window], [band], *numbers, orders=[(0, 0)])
    assert torch.equal(alone, magnitude)


@EACH_SHAPE
def test_masked_istft(shape, emulated: Emulated):
    """With a first and a last bin that are not real, as those of a wave would be."""
    stems, rows, frames, n_fft, hop_length, first_bin, bins = shape
    spectrum, window = torch.randn(rows, frames, n_fft // 2 + 1, 2), torch.randn(n_fft)
    mask, gain = masks(stems, rows, frames, bins)
    strides = *spectrum.stride()[:2], *mask.stride()[1:3]
    wave = (stems, rows, (frames - 1) * hop_length + n_fft), torch.float32
    numbers = stems, rows, frames, strides[0] // 2, strides[1] // 2, *strides[2:], n_fft, hop_length, first_bin, bins
    (made,) = emulated.run("masked_istft", [spectrum, mask, gain, window], [wave], *numbers)
    judge(made, real_masked_istft, spectrum, mask, gain, window, hop_length, first_bin)


@EACH_SHAPE
def test_mask_wave(shape, emulated: Emulated):
    stems, rows, frames, n_fft, hop_length, first_bin, bins = shape
    wave, windows = a_wave(rows, frames, n_fft, hop_length), (torch.randn(n_fft), torch.randn(n_fft))
    mask, gain = masks(stems, rows, frames, bins)
    numbers = stems, rows, frames, wave.shape[-1], *mask.stride()[1:3], n_fft, hop_length, first_bin, bins
    waves = (stems, rows, (frames - 1) * hop_length + n_fft), torch.float32
    (made,) = emulated.run("mask_wave", [wave, mask, gain, *windows], [waves], *numbers)
    judge(made, masked_wave, wave, mask, gain, *windows, hop_length, first_bin)


def test_strided_rows_and_frames(emulated: Emulated):
    """Of larger tensors, whose other elements are NaN, at addresses that are no multiples of a pair's size."""
    stems, rows, frames, n_fft, hop_length, first_bin, bins = 2, 2, 9, 64, 16, 3, 20
    wave, window = a_wave(rows, frames, n_fft, hop_length), torch.randn(n_fft)
    spectrum = torch.randn(rows, frames, n_fft // 2 + 1, 2)
    mask, gain = masks(stems, rows, frames, bins)

    def inside(x: Tensor, *more: int) -> Tensor:
        """x at the start of a larger tensor."""
        larger = torch.full([size + extra for size, extra in zip(x.shape, more, strict=True)], torch.nan)
        larger[tuple(slice(size) for size in x.shape)] = x
        return larger

    wide_wave, wide_spectrum, wide_mask = inside(wave, 1, 3), inside(spectrum, 1, 2, 1, 0), inside(mask, 0, 0, 1, 3)
    band, waves = (rows, frames, bins), (stems, rows, (frames - 1) * hop_length + n_fft)
    numbers = n_fft, hop_length, first_bin, bins
    inputs = [wide_wave, window]
    (magnitude,) = emulated.run(
        "magnitudes", inputs, [(band, torch.float32)], rows, frames, wave.shape[-1] + 3, *numbers
    )
    judge(magnitude, lambda *x: reference.stft(*x)[1], wave, window, *numbers[1:])

    sizes = stems, rows, frames
    mask_strides = (frames + 1) * (bins + 3), bins + 3
    spectrum_strides = (frames + 2) * (n_fft // 2 + 2), n_fft // 2 + 2
    inputs = [wide_spectrum, wide_mask, gain, window]
    strides = *spectrum_strides, *mask_strides
    (made,) = emulated.run("masked_istft", inputs, [(waves, torch.float32)], *sizes, *strides, *numbers)
    judge(made, real_masked_istft, spectrum, mask, gain, window, hop_length, first_bin)

    inputs = [wide_wave, wide_mask, gain, window, window]
    strides = wave.shape[-1] + 3, *mask_strides
    (made,) = emulated.run("mask_wave", inputs, [(waves, torch.float32)], *sizes, *strides, *numbers)
    judge(made, masked_wave, wave, mask, gain, window, window, hop_length, first_bin)


@pytest.mark.parametrize(("n_fft", "hop_length", "frames"), [(32, 8, 90), (4096, 1024, 19)])
def test_the_same_bits_however_the_hops_are_shared_out(n_fft, hop_length, frames, emulated: Emulated):
    """More rows make longer runs: so many that one row is cut in several places, then in others, or not at all."""
    row_counts = 1, 8000 if n_fft == 32 else 260
    spectrum, window = torch.randn(1, frames, n_fft // 2 + 1, 2), torch.randn(n_fft)
    mask, gain = masks(1, 1, frames, 1)
    length = (frames - 1) * hop_length + n_fft
    results = []
    for rows in row_counts:
        inputs = [spectrum, mask, gain.expand(1, rows, frames), window]
        numbers = 1, rows, frames, 0, spectrum.shape[2], 0, 1, n_fft, hop_length, 0, 1  # all rows are one in memory
        outputs = [((1, rows, length), torch.float32)]
        (wave,) = emulated.run("masked_istft", inputs, outputs, *numbers, orders=[(0, 0)])
        results += [wave[:, :1], wave[:, -1:]]
    assert all(torch.equal(other, results[0]) for other in results)


def test_roots_are_rounded_once(emulated: Emulated):
    """The halved roots, at the end of the table, of all lengths; the others show in the transforms."""
    for n_fft in (32, 1024, 8192):
        roots = torch.empty(n_fft // 4, 2)
        emulated.call("halved_roots", roots, n_fft)
        angles = -2 * torch.pi * torch.arange(n_fft // 4, dtype=torch.float64) / n_fft
        assert torch.equal(roots, torch.stack((angles.cos(), angles.sin()), -1).mul(0.5).float())
