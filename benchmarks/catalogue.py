"""How many songs a minute, several at a time, next to a loop of `separate_file`?

    python benchmarks/catalogue.py [--songs 100] [--duration 60] [--format mp3] [--rounds 3] [--model NAME_OR_FILE]

Songs are made by formulas, in stereo at 44.1 kHz, written in `--format`, and separated into the same. Both ways take
turns in one process, each with all of torch's threads to itself; the results must be the same files. The processor time
of a song's parts (reading, separating, writing) says what bounds both.
"""

import argparse
import filecmp
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from harness import save

from pyunetsep import Separator
from pyunetsep.audio import AudioReader, AudioWriter, output_format
from pyunetsep.benchmark import alternate

RATE = 44_100


def write_songs(folder: Path, songs: int, duration_s: float, container: str) -> list[Path]:
    """Noise in both channels under gliding tones: an encoder has as much to do as with music."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    time_s = np.arange(round(duration_s * RATE)) / RATE
    paths = []
    for i in range(songs):
        tones = sum(
            np.sin(2 * np.pi * f * time_s * (1 + 0.1 * np.sin(time_s * (i + 1)))) for f in (110, 277, 660, 1900)
        )
        wave = 0.05 * tones[:, None] + 0.05 * rng.standard_normal((len(time_s), 2))
        paths.append(folder / f"{i:03}.{container}")
        soundfile.write(paths[-1], wave.astype(np.float32), RATE)
    return paths


def parts_s(separator: Separator, path: Path, folder: Path) -> dict[str, float]:
    """Processor time that reading, separating and writing one song takes."""
    times = {}
    started = time.process_time()
    with AudioReader(path) as reader:
        wave = reader.read(reader.samples)
        form = output_format(None, None, reader.format, reader.sample_rate_hz, reader.channels)
    times["read_s"], started = time.process_time() - started, time.process_time()
    stems = separator(np.ascontiguousarray(wave.T), RATE)
    times["separate_s"], started = time.process_time() - started, time.process_time()
    for name, stem in stems.items():
        with AudioWriter(
            folder / name, sample_rate_hz=RATE, channels=2, samples=len(stem), format=form, overwrite=True
        ) as writer:
            for at in range(0, len(stem), 5 * RATE):
                writer.write(np.ascontiguousarray(stem[at : at + 5 * RATE].T))
            writer.commit()
    times["write_s"] = time.process_time() - started
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--songs", type=int, default=100)
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--format", default="mp3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="spleeter-2stems")
    args = parser.parse_args()

    separator = Separator.from_pretrained(args.model, device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        songs = write_songs(folder / "songs", args.songs, args.duration, args.format)
        parts = parts_s(separator, songs[0], folder)

        def loop() -> None:
            for song in songs:
                separator.separate_file(song, folder / "loop", overwrite=True)

        def together() -> None:
            for result in separator.separate_files(
                songs, folder / "together", workers=separator.default_workers, overwrite=True
            ):
                if result.error:
                    raise result.error

        times = alternate({"loop": loop, "together": together}, rounds=args.rounds)
        for path in (folder / "loop").rglob("*.*"):
            if not filecmp.cmp(path, folder / "together" / path.relative_to(folder / "loop"), shallow=False):
                raise SystemExit(f"{path.name} differs")
    ratio = times["loop"]["median_s"] / times["together"]["median_s"]
    results: dict[str, Any] = {
        "songs": args.songs,
        "duration_s": args.duration,
        "format": args.format,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "workers": separator.default_workers,
        "processor_time_of_a_song": parts,
        "times": times,
        "songs_a_minute": {name: 60 * args.songs / timing["median_s"] for name, timing in times.items()},
        "ratio": ratio,
    }
    print({name: round(value, 3) for name, value in parts.items()})
    print(f"{args.songs} songs of {args.duration:g} s: {results['songs_a_minute']} songs a minute, ratio {ratio:.2f}")
    print(save(f"catalogue_{args.format}", results))


if __name__ == "__main__":
    main()
