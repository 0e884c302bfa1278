"""`pyunetsep plot`: a song in, a picture of its spectrograms and mask out."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from . import arguments
from .exit_codes import DONE
from .progress import SongBar

EXAMPLES = """examples:
  pyunetsep plot song.mp3
      separates the song and draws song.png: mixture, stems, and the mask of the vocals
  pyunetsep plot concert.flac -o solo.svg --start 1:02:00 --duration 30
      half a minute from the second hour; the extension chooses the format: png, jpg, webp, tiff, pdf, svg

However long the song is, all of it is shown, and memory does not grow with it: each of the picture's at most 990
columns is the mean power of its time. The stems need room in the temporary folder (TMPDIR) while the picture is made.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "plot",
        help="draw the spectrograms of a song, its stems and its mask",
        description="Separates a song and draws one picture: spectrograms of mixture and stems, and the vocals' mask.",
        epilog=EXAMPLES,
    )
    parser.add_argument("song", metavar="SONG", help="audio file")
    parser.add_argument(
        "-o", "--output", metavar="PICTURE", help="file to write (default: the song's name and .png, in this folder)"
    )
    arguments.add_model(parser)
    arguments.add_excerpt(parser, "draw")
    parser.add_argument("--sanitize", action="store_true", help="replace NaN and infinite samples by silence")
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that exists")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    arguments.check_excerpt(args)
    if args.output == "":
        args.parser.error("-o needs the name of a picture, got an empty one")
    picture = Path(args.output if args.output is not None else f"{Path(args.song).stem}.png")

    from ..errors import OutputExistsError
    from ..plot import check_picture, draw_picture, read_spectrogram

    excerpt = {"start_s": args.start, "duration_s": args.duration}
    with (
        arguments.flags_in_messages(),
        tempfile.TemporaryDirectory(prefix="pyunetsep-") as folder,
        closing(SongBar()) as bar,
    ):
        check_picture(picture, overwrite=args.overwrite)
        if picture.exists() and os.path.exists(args.song) and os.path.samefile(picture, args.song):
            raise OutputExistsError(f"{picture}: is the song itself; -o names another file")
        result = arguments.separator(args).separate_file(
            args.song,
            folder,
            container="wav",
            subtype="FLOAT",  # neither clips nor rounds
            sanitize=args.sanitize,
            progress=bar.show,
            **excerpt,
        )
        stems = {name: read_spectrogram(path) for name, path in result.outputs.items()}
        mixture = read_spectrogram(args.song, **excerpt)
    begin, end = arguments.clock(args.start), arguments.clock(args.start + result.duration_s)
    title = f"{Path(args.song).name}, {begin} to {end}"
    draw_picture(mixture, stems, picture, title=title)
    if sys.stderr.isatty():
        column_s = result.duration_s / mixture.columns
        print(f"{picture}: {title}, a column of the picture for each {column_s:.2f} s", file=sys.stderr)
    return DONE
