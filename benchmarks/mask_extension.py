"""What should a stem be above the network's band, how much should patches overlap, and is one mask enough in stereo?

    python benchmarks/mask_extension.py SONGS [--model NAME_OR_FILE] [--only SONG ...] [--starts 60 150 210]
                                        [--duration 24] [--rounds 15]

SONGS is a folder of <name>/vocals.* and accompaniment.*; the score is the vocals' signal-to-distortion ratio (energy of
the vocals over energy of the error) below and above the edge of the network's band and in both together, median over
the excerpts whose vocals reach up there. Networks of one channel are also asked for a mask a channel ("each") and for
one from the middle ("mid"); these two take turns on the first stereo excerpt, and so have times.
"""

import argparse
import itertools
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harness import save

from pyunetsep import Separator, SeparatorConfig, models
from pyunetsep.audio import AudioReader
from pyunetsep.benchmark import Timing, alternate
from pyunetsep.checkpoint import Checkpoint
from pyunetsep.config import SpectrogramConfig

README_MODEL = "spleeter-2stems"  # its results are the README's
LEAST_HIGHS = 1e-5  # of the energy below; less is what a lossy codec left
VARIANTS = {
    "zeros": SeparatorConfig(mask_extension="zeros"),
    "average": SeparatorConfig(mask_extension="average"),
    "upper (default)": SeparatorConfig(),
    "upper, overlap 0": SeparatorConfig(overlap=0.0),
    "upper, overlap 0.5": SeparatorConfig(overlap=0.5),
}
STEREO = {"each": SeparatorConfig(stereo_masks="each"), "mid": SeparatorConfig(stereo_masks="mid")}


def band_edge_hz(spectrogram: SpectrogramConfig) -> float:
    return (spectrogram.first_bin + spectrogram.bins) * spectrogram.sample_rate_hz / spectrogram.n_fft


def bands(wave: np.ndarray, rate: int, edge_hz: float) -> tuple[np.ndarray, np.ndarray]:
    spectrum = np.fft.rfft(wave, axis=0)
    cut = round(edge_hz / rate * len(wave))
    return spectrum[:cut], spectrum[cut:]


def energy(samples: np.ndarray) -> float:
    return float(np.sum(np.abs(samples) ** 2))


def sdr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(10 * np.log10(energy(reference) / energy(reference - estimate)))


def read(folder: Path, stem: str, start_s: float, duration_s: float) -> tuple[np.ndarray, int]:
    with AudioReader(next(folder.glob(f"{stem}.*")), start_s=start_s, duration_s=duration_s) as reader:
        return reader.read(reader.samples).T, reader.sample_rate_hz


def timed(checkpoint: Checkpoint, mixture: np.ndarray, rate: int, rounds: int) -> dict[str, Timing]:
    """All stems of an array, with each choice of `STEREO`."""
    rivals = {name: Separator(checkpoint, device="cpu", config=config) for name, config in STEREO.items()}
    return alternate({name: lambda s=s: s(mixture, rate) for name, s in rivals.items()}, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("songs", type=Path)
    parser.add_argument("--model", default=README_MODEL, help="a name or a file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="SONG", help="of the folder; all of them without it")
    parser.add_argument("--starts", type=float, nargs="+", default=[60.0, 150.0, 210.0])
    parser.add_argument("--duration", type=float, default=24.0)
    parser.add_argument("--rounds", type=int, default=15, help="of the timing (default: %(default)s)")
    args = parser.parse_args()

    checkpoint = models.load(args.model)
    edge_hz = band_edge_hz(checkpoint.config.spectrogram)
    mono = checkpoint.config.unet.input_channels == 1
    variants = VARIANTS | STEREO if mono else VARIANTS
    separators = {name: Separator(checkpoint, device="cpu", config=config) for name, config in variants.items()}
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    times: Mapping[str, Timing] = {}
    folders = sorted(path for path in args.songs.iterdir() if path.is_dir() and path.name in (args.only or [path.name]))
    for folder, start in itertools.product(folders, args.starts):
        try:
            vocals, rate = read(folder, "vocals", start, args.duration)
        except ValueError:  # the song ends before
            continue
        low, high = bands(vocals, rate, edge_hz)
        if rate < 4 * edge_hz or energy(high) < LEAST_HIGHS * energy(low) or energy(vocals) < 1e-6 * len(vocals):
            continue
        mixture = vocals + read(folder, "accompaniment", start, args.duration)[0]
        for name, separator in separators.items():
            made = separator(mixture, rate, stem="vocals")["vocals"]
            low_made, high_made = bands(made, rate, edge_hz)
            scores[name].append((sdr_db(low, low_made), sdr_db(high, high_made), sdr_db(vocals, made)))
        print(folder.name, start, {name: [round(value, 1) for value in values[-1]] for name, values in scores.items()})
        if mono and not times and mixture.shape[1] == 2:
            times = timed(checkpoint, mixture, rate, args.rounds)
    if not scores["zeros"]:
        raise SystemExit(f"{args.songs}: no excerpt whose vocals reach above {edge_hz:g} Hz")

    edge = f"{edge_hz / 1000:.0f}_khz"
    results: dict[str, dict[str, Any]] = {}
    for name, values in scores.items():
        below, above, whole = (statistics.median(column) for column in zip(*values, strict=True))
        results[name] = {
            "excerpts": len(values),
            f"sdr_below_{edge}_db": below,
            f"sdr_above_{edge}_db": above,
            "sdr_db": whole,
        }
        print(f"{name:20s} below {below:6.2f} dB, above {above:6.2f} dB, all {whole:6.2f} dB")
    for name, timing in times.items():
        ratio = timing["median_s"] / times["each"]["median_s"]
        results[name] |= {"duration_s": args.duration, "time": timing, "time_of_each": ratio}
        print(f"{name:20s} {timing['median_s']:.3f} s for {args.duration:g} s of stereo, {ratio:.2f} of each's")

    name = args.model if models.NAME.fullmatch(args.model) else checkpoint.info.name
    suffix = "" if name == README_MODEL else "_" + re.sub(r"[^\w.-]", "_", name)
    print(save(f"mask_extension{suffix}", results))


if __name__ == "__main__":
    main()
