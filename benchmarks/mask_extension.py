"""Which share of the highs above the network's band should the vocals get, and how much should patches overlap?

    python benchmarks/mask_extension.py SONGS [--starts 60 150 210] [--duration 24]

SONGS is a folder of <name>/vocals.* and accompaniment.*; the score is the vocals' signal-to-distortion ratio (energy of
the vocals over energy of the error) below and above 11 kHz, median over the excerpts whose vocals reach up there.
"""

import argparse
import itertools
import statistics
from pathlib import Path

import numpy as np
from harness import save

from pyunetsep import Separator, SeparatorConfig, models
from pyunetsep.audio import AudioReader

BAND_HZ = 11_025
LEAST_HIGHS = 1e-5  # of the energy below; less is what a lossy codec left
VARIANTS = {
    "zeros": SeparatorConfig(mask_extension="zeros"),
    "average": SeparatorConfig(mask_extension="average"),
    "upper (default)": SeparatorConfig(),
    "upper, overlap 0": SeparatorConfig(overlap=0.0),
    "upper, overlap 0.5": SeparatorConfig(overlap=0.5),
}


def bands(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    spectrum = np.fft.rfft(wave, axis=0)
    cut = round(BAND_HZ / rate * len(wave))
    return spectrum[:cut], spectrum[cut:]


def energy(samples: np.ndarray) -> float:
    return float(np.sum(np.abs(samples) ** 2))


def sdr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(10 * np.log10(energy(reference) / energy(reference - estimate)))


def read(folder: Path, stem: str, start_s: float, duration_s: float) -> tuple[np.ndarray, int]:
    with AudioReader(next(folder.glob(f"{stem}.*")), start_s=start_s, duration_s=duration_s) as reader:
        return reader.read(reader.samples).T, reader.sample_rate_hz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("songs", type=Path)
    parser.add_argument("--starts", type=float, nargs="+", default=[60.0, 150.0, 210.0])
    parser.add_argument("--duration", type=float, default=24.0)
    args = parser.parse_args()

    checkpoint = models.load("spleeter-2stems")
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    folders = sorted(path for path in args.songs.iterdir() if path.is_dir())
    for folder, start in itertools.product(folders, args.starts):
        try:
            vocals, rate = read(folder, "vocals", start, args.duration)
        except ValueError:  # the song ends before
            continue
        low, high = bands(vocals, rate)
        if rate < 4 * BAND_HZ or energy(high) < LEAST_HIGHS * energy(low) or energy(vocals) < 1e-6 * len(vocals):
            continue
        mixture = vocals + read(folder, "accompaniment", start, args.duration)[0]
        for name, config in VARIANTS.items():
            made = Separator(checkpoint, device="cpu", config=config)(mixture, rate, stem="vocals")["vocals"]
            low_made, high_made = bands(made, rate)
            scores[name].append((sdr_db(low, low_made), sdr_db(high, high_made)))
        print(folder.name, start, {name: [round(value, 1) for value in values[-1]] for name, values in scores.items()})
    results = {
        name: {
            "excerpts": len(values),
            "sdr_below_11_khz_db": statistics.median(low for low, _ in values),
            "sdr_above_11_khz_db": statistics.median(high for _, high in values),
        }
        for name, values in scores.items()
    }
    for name, row in results.items():
        print(f"{name:20s} below {row['sdr_below_11_khz_db']:6.2f} dB, above {row['sdr_above_11_khz_db']:6.2f} dB")
    print(save("mask_extension", results))


if __name__ == "__main__":
    main()
