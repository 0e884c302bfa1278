"""Analysis, resynthesis and patches."""

import math

import pytest
import torch

from pyunetsep.config import JANSSON2017, SPLEETER
from pyunetsep.spectrogram import Spectrogram, default_grids, join_patches, split_patches
from tests.properties import given, st

CPU = torch.device("cpu")


def padded(wave, spectrogram):
    frames = -(-(wave.shape[-1] + spectrogram.n_fft) // spectrogram.hop_length)
    behind = spectrogram.span(frames) - wave.shape[-1] - spectrogram.n_fft
    return torch.nn.functional.pad(wave, (spectrogram.n_fft, behind))


def test_a_frame_is_the_windowed_dft_of_its_samples():
    config = JANSSON2017.spectrogram
    spectrogram = Spectrogram(config, device=CPU, dtype=torch.float64)
    wave = torch.randn(3 * config.n_fft, dtype=torch.float64)
    spectrum, magnitude = spectrogram.analyse(wave)
    i = torch.arange(config.n_fft, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * i / config.n_fft)
    k, frame = 37, 2
    start = frame * config.hop_length
    expected = (wave[start : start + config.n_fft] * hann * torch.exp(-2j * math.pi * k * i / config.n_fft)).sum()
    torch.testing.assert_close(spectrum[frame, k], expected)
    torch.testing.assert_close(magnitude[frame, k - config.first_bin], expected.abs())
    frames = (2 * config.n_fft) // config.hop_length + 1
    assert spectrum.shape == (frames, config.n_fft // 2 + 1)
    assert magnitude.shape == (frames, config.bins)


@pytest.mark.parametrize("config", [JANSSON2017.spectrogram, SPLEETER.spectrogram], ids=["jansson2017", "spleeter"])
@pytest.mark.parametrize("samples", [1, 2, 767, 1024, 4096, 10_007])
def test_the_inverse_gives_back_the_wave(config, samples):
    for grids in (1, default_grids(config)):
        spectrogram = Spectrogram(config, grids=grids, device=CPU)
        wave = torch.randn(2, samples)
        spectrum, magnitude = spectrogram.analyse(padded(wave, spectrogram))
        back = spectrogram.synthesise(spectrum, torch.ones_like(magnitude), torch.ones(magnitude.shape[:-1]))
        torch.testing.assert_close(back[:, config.n_fft :][:, :samples], wave, rtol=0, atol=3e-6)


@pytest.mark.parametrize("config", [JANSSON2017.spectrogram, SPLEETER.spectrogram], ids=["jansson2017", "spleeter"])
def test_filter_is_analysis_mask_and_synthesis(config, device):
    """Of a mask with fewer frames than the wave."""
    spectrogram = Spectrogram(config, device=device)
    wave = torch.randn(2, 20 * config.hop_length + config.n_fft, device=device)
    spectrum, magnitude = spectrogram.analyse(wave)
    assert torch.equal(spectrogram.magnitudes(wave), magnitude)
    mask, gain = torch.rand(3, *magnitude.shape, device=device)[:, :, :17], torch.rand(3, 2, 17, device=device)
    expected = spectrogram.synthesise(spectrum[:, :17], mask, gain)
    assert expected.shape == (3, 2, spectrogram.span(17))
    torch.testing.assert_close(spectrogram.filter(wave, mask, gain), expected, rtol=0, atol=3e-6)


def test_spleeters_window_sum_is_the_constant_two_thirds():
    spectrogram = Spectrogram(SPLEETER.spectrogram, device=CPU, dtype=torch.float64)
    torch.testing.assert_close(spectrogram.synthesis_window, spectrogram.window * (2 / 3), rtol=1e-14, atol=0)


def test_grids_must_divide_the_hop():
    assert default_grids(JANSSON2017.spectrogram) == 3
    assert default_grids(SPLEETER.spectrogram) == 1
    with pytest.raises(ValueError, match="grids must divide the hop of 768 samples, got 5"):
        Spectrogram(JANSSON2017.spectrogram, grids=5, device=CPU)


def flutter_db(grids):
    """Ripple of the power of masked white noise over the places within a hop, masks as rough as can be."""
    config = JANSSON2017.spectrogram
    torch.manual_seed(0)
    spectrogram = Spectrogram(config, grids=grids, device=CPU)
    spectrum, magnitude = spectrogram.analyse(torch.randn(8, 400 * config.hop_length))
    mask = torch.randint(0, 2, magnitude.shape).float()
    wave = spectrogram.synthesise(spectrum, mask, torch.zeros(mask.shape[:-1]))
    hops = wave.shape[-1] // config.hop_length
    steady = wave[:, 2 * config.hop_length : (hops - 2) * config.hop_length]
    power = steady.reshape(8, -1, 12, config.hop_length // 12).square().mean((0, 1, 3))
    return float(10 * torch.log10(power.max() / power.min()))


def test_three_grids_take_away_the_flutter_of_hop_768():
    assert flutter_db(1) > 6.0
    assert flutter_db(3) < 0.5


@given(
    overlap=st.integers(0, 6),
    patches=st.integers(1, 5),
    calls=st.integers(1, 3),
    channels=st.integers(1, 2),
    grids=st.integers(1, 2),
    bins=st.integers(1, 2),
)
def test_patches_of_one_signal_join_to_that_signal(overlap, patches, calls, channels, grids, bins):
    patch_frames = 12
    stride = patch_frames - overlap
    shape = channels, calls * patches * stride + overlap, grids, bins
    signal = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    joined, faded = [], None
    for call in range(calls):
        start, last = call * patches * stride, call == calls - 1
        part = split_patches(signal[:, start : start + patches * stride + overlap], patch_frames, stride)
        assert part.shape == (patches, channels, patch_frames, grids, bins)
        run, faded = join_patches(part.clone(), stride, faded, last=last)
        joined.append(run)
    torch.testing.assert_close(torch.cat(joined, -3), signal)
    assert faded is None


def test_a_cross_fade_is_linear_and_nothing_fades_at_the_ends():
    patches = torch.stack((torch.zeros(1, 8, 1, 1), torch.ones(1, 8, 1, 1)))
    joined, _ = join_patches(patches, 4, None, last=True)
    assert joined.flatten().tolist() == [0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]
