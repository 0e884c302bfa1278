"""Which share of what lies above the network's band (11 kHz) should the vocals get, and how much should patches overlap?

    python benchmarks/mask_extension.py SONGS [--start 60] [--duration 30]

SONGS is a folder of songs/<name>/vocals.* and accompaniment.*; the score is the vocals' signal-to-distortion ratio
(energy of the vocals over energy of the error) in the band and above it, median over the songs that have vocals there.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from harness import save

from pyunetsep import Separator, SeparatorConfig, models
from pyunetsep.audio import AudioReader

BAND_HZ = 11_025
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


def sdr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(np.abs(reference) ** 2) / np.sum(np.abs(reference - estimate) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("songs", type=Path)
    parser.add_argument("--start", type=float, default=60.0)
    parser.add_argument("--duration", type=float, default=30.0)
    args = parser.parse_args()

    checkpoint = models.load("spleeter-2stems")
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for folder in sorted(path for path in args.songs.iterdir() if path.is_dir()):
        stems = {}
        for stem in ("vocals", "accompaniment"):
            with AudioReader(next(folder.glob(f"{stem}.*")), start_s=args.start, duration_s=args.duration) as reader:
                stems[stem], rate = reader.read(reader.samples).T, reader.sample_rate_hz
        if rate < 4 * BAND_HZ or np.mean(stems["vocals"] ** 2) < 1e-6:
            continue
        length = min(map(len, stems.values()))
        vocals = stems["vocals"][:length]
        mixture = vocals + stems["accompaniment"][:length]
        for name, config in VARIANTS.items():
            made = Separator(checkpoint, device="cpu", config=config)(mixture, rate, stem="vocals")["vocals"]
            (low, high), (low_made, high_made) = bands(vocals, rate), bands(made, rate)
            scores[name].append((sdr_db(low, low_made), sdr_db(high, high_made)))
        print(folder.name, {name: [round(value, 2) for value in values[-1]] for name, values in scores.items()})
    results = {
        name: {
            "songs": len(values),
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
