"""The real weights on a real song, against TensorFlow Spleeter and against the same pipeline in float64.

Needs the weights (in the cache, or fetched) and the reference recordings in ../shared/reference, and skips without.
"""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from pyunetsep import ModelUnavailableError, Separator, models
from pyunetsep.config import EXACT
from pyunetsep.unmixer import Unmixer

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "spleeter-2stems"
STEMS = ("vocals", "accompaniment")


@pytest.fixture(scope="module")
def separator():
    try:
        return Separator(models.load("spleeter-2stems"), device="cpu")
    except ModelUnavailableError as error:
        pytest.skip(f"needs the weights of spleeter-2stems: {error}")


@pytest.fixture(scope="module")
def mixture():
    if not REFERENCE.is_dir():
        pytest.skip(f"needs the reference song in {REFERENCE.name}, which is not part of the project")
    return np.load(REFERENCE / "mix.npy")


def snr_db(reference, estimate):
    reference, estimate = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    return 10 * np.log10(np.sum(reference**2) / np.sum((reference - estimate) ** 2))


def test_exact_mode_is_tensorflow_spleeter(separator, mixture, record_property):
    stems = separator(mixture, 44_100, exact=True)
    for stem in STEMS:
        snr = snr_db(np.load(REFERENCE / f"tf_{stem}.npy"), stems[stem])
        record_property(f"{stem}_snr_db", round(float(snr), 2))
        assert snr >= 95.0


@pytest.mark.parametrize("kernels", ["0", "1"], ids=["plain PyTorch", "kernels"])
def test_float32_is_as_good_as_float64(separator, mixture, kernels, monkeypatch, record_property):
    wave = torch.from_numpy(mixture.T.copy())
    double = models.load("spleeter-2stems").networks
    with torch.inference_mode():
        unmixer = Unmixer(separator.model, {stem: net.double() for stem, net in double.items()}, EXACT, 2, STEMS)
        truth = torch.cat((unmixer.push(wave.double())[0], unmixer.flush()[0]), -1).numpy()
    monkeypatch.setenv("PYUNETSEP_KERNELS", kernels)
    stems = separator(mixture, 44_100, exact=True)
    for stem, expected in zip(STEMS, truth, strict=True):
        snr = snr_db(expected.T, stems[stem])
        record_property(f"{stem}_snr_db", round(float(snr), 2))
        assert snr >= 120.0


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_stems_add_up_to_the_song_at_any_rate(separator, mixture, tmp_path, rate):
    song = mixture if rate == 44_100 else soxr.resample(mixture, 44_100, rate).astype(np.float32)
    stems = separator(song, rate)
    assert np.abs(stems["vocals"].astype(np.float64) + stems["accompaniment"] - song).max() <= 1e-6
    soundfile.write(tmp_path / "song.wav", song, rate, subtype="FLOAT")
    outputs = separator.separate_file(tmp_path / "song.wav", tmp_path).outputs
    total = sum(soundfile.read(path, dtype="float64")[0] for path in outputs.values())
    assert np.abs(total - song).max() <= 1e-6


def test_blocks_give_the_same_song(separator, mixture, monkeypatch):
    song = np.tile(mixture, (3, 1))  # several segments, and a cross-fade between each two
    whole = separator(song, 48_000)
    monkeypatch.setattr("pyunetsep.separator.BLOCK_S", 0.37)
    in_blocks = separator(song, 48_000)
    for stem in STEMS:
        assert np.abs(whole[stem] - in_blocks[stem]).max() <= 1e-5
