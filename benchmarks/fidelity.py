"""How close is the separation to TensorFlow Spleeter, to float64, and the sum of the stems to the mixture?

    python benchmarks/fidelity.py REFERENCE

REFERENCE is a folder with mix.npy, tf_vocals.npy and tf_accompaniment.npy, float32 (samples, 2) at 44.1 kHz: a song,
and what TensorFlow Spleeter makes of it.
"""

import argparse
from pathlib import Path

import numpy as np
import soxr
import torch
from harness import save

from pyunetsep import Separator, models
from pyunetsep.config import EXACT
from pyunetsep.unmixer import Unmixer

STEMS = ("vocals", "accompaniment")


def snr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - estimate) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path)
    reference = parser.parse_args().reference

    mixture = np.load(reference / "mix.npy")
    checkpoint = models.load("spleeter-2stems")
    separator = Separator(checkpoint, device="cpu")
    exact = separator(mixture, 44_100, exact=True)

    double = {stem: network.double() for stem, network in models.load("spleeter-2stems").networks.items()}
    with torch.inference_mode():
        unmixer = Unmixer(checkpoint.config, double, EXACT, 2, STEMS)
        wave = torch.from_numpy(mixture.T.astype(np.float64))
        truth = torch.cat((unmixer.push(wave)[0], unmixer.flush()[0]), -1).numpy()

    results: dict[str, dict[str, float]] = {
        "snr_against_tensorflow_db": {
            stem: snr_db(np.load(reference / f"tf_{stem}.npy"), exact[stem]) for stem in STEMS
        },
        "snr_against_float64_db": {
            stem: snr_db(expected.T, exact[stem]) for stem, expected in zip(STEMS, truth, strict=True)
        },
        "largest_error_of_the_sum": {},
    }
    for rate in (8_000, 22_050, 44_100, 48_000, 96_000, 192_000):
        song = mixture if rate == 44_100 else soxr.resample(mixture, 44_100, rate).astype(np.float32)
        stems = separator(song, rate)
        total = stems["vocals"].astype(np.float64) + stems["accompaniment"]
        results["largest_error_of_the_sum"][str(rate)] = float(np.abs(total - song).max())
    for name, values in results.items():
        print(name, {key: float(f"{value:.4g}") for key, value in values.items()})
    print(save("fidelity", results))


if __name__ == "__main__":
    main()
