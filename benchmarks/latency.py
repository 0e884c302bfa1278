"""What does a low latency cost, in quality and in computing?

    python benchmarks/latency.py SONGS [--models NAME_OR_FILE ...] [--only SONG ...] [--latencies 12 3 1 0.4]

SONGS is a folder of <name>/vocals.* and accompaniment.*. Excerpts of their sum, at 44.1 kHz, are pushed through
`Separator.stream` in blocks of 10 ms. The score is the vocals' signal-to-distortion ratio above the mixture's (energy
of the vocals over energy of the error), mean over the excerpts; the load is processor time over the excerpt's duration,
on one thread. A latency that a model cannot keep is left out, with what it needs.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import save

from pyunetsep import Separator
from pyunetsep.audio import AudioReader, Resampler

RATE = 44_100
BLOCK = 441


def read(folder: Path, stem: str, start_s: float, duration_s: float) -> np.ndarray:
    """[samples, channels] at 44.1 kHz."""
    with AudioReader(next(folder.glob(f"{stem}.*")), start_s=start_s, duration_s=duration_s) as reader:
        resampler = Resampler(reader.sample_rate_hz, RATE, reader.channels)
        return np.concatenate((resampler.push(reader.read(reader.samples)), resampler.flush()), axis=1).T


def sdr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - estimate) ** 2)))


def measured(
    separator: Separator, songs: dict[str, tuple[np.ndarray, np.ndarray]], latency_s: float | None
) -> dict[str, Any]:
    gains, loads = {}, []
    for name, (vocals, mixture) in songs.items():
        started = time.process_time()
        with separator.stream(RATE, mixture.shape[1], stem="vocals", latency_s=latency_s) as stream:
            parts = [stream.push(mixture[at : at + BLOCK])["vocals"] for at in range(0, len(mixture), BLOCK)]
            parts.append(stream.flush()["vocals"])
        loads.append((time.process_time() - started) / (len(mixture) / RATE))
        gains[name] = sdr_db(vocals, np.concatenate(parts)) - sdr_db(vocals, mixture)
    return {
        "latency_s": stream.latency_s,
        "nsdr_db": statistics.mean(gains.values()),
        "load": statistics.median(loads),
        "songs": gains,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("songs", type=Path)
    parser.add_argument("--models", nargs="+", default=["spleeter-2stems", "jansson2017"])
    parser.add_argument("--only", nargs="+", metavar="SONG", help="of the folder; all of them without it")
    parser.add_argument("--latencies", type=float, nargs="+", default=[12.2, 3.0, 1.0, 0.4])
    parser.add_argument("--start", type=float, default=60.0)
    parser.add_argument("--duration", type=float, default=60.0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    songs = {}
    for folder in sorted(path for path in args.songs.iterdir() if path.is_dir()):
        if folder.name in (args.only or [folder.name]):
            vocals, other = (read(folder, stem, args.start, args.duration) for stem in ("vocals", "accompaniment"))
            length = min(len(vocals), len(other))
            if np.any(vocals):
                songs[folder.name] = vocals[:length], vocals[:length] + other[:length]
    results: dict[str, Any] = {"excerpts": list(songs), "duration_s": args.duration, "models": {}}
    for model in args.models:
        separator = Separator.from_pretrained(model, device="cpu")
        rows = results["models"].setdefault(Path(model).stem, {})
        for latency_s in args.latencies:
            try:
                rows[f"{latency_s:g}"] = row = measured(separator, songs, latency_s)
            except ValueError as error:
                rows[f"{latency_s:g}"] = {"impossible": str(error)}
                print(f"{model} {latency_s:g} s: {error}", flush=True)
            else:
                print(
                    f"{model} {latency_s:g} s: latency {row['latency_s']:.2f} s, {row['nsdr_db']:.2f} dB, "
                    f"load {row['load']:.2f}",
                    flush=True,
                )
    print(save("latency", results))


if __name__ == "__main__":
    main()
