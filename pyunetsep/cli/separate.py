"""`pyunetsep separate`: songs in, stems out."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from ..errors import OutputExistsError
from .exit_codes import DONE, SOME_FAILED
from .progress import ProgressBar

if TYPE_CHECKING:
    from ..separator import FileResult

# what messages of the Python API call the options -> what the user calls them
FLAGS = {
    "see overwrite and skip_existing": "see --overwrite and --skip-existing",
    "start_s:": "--start:",
    "duration_s:": "--duration:",
    "sanitize=True (--sanitize)": "--sanitize",
}
FORMATS = ("wav", "flac", "mp3", "ogg", "opus")
PRECISIONS = ("float32", "float16", "bfloat16")

EXAMPLES = """examples:
  pyunetsep separate song.mp3
      writes stems/song/vocals.mp3 and stems/song/accompaniment.mp3
  pyunetsep separate album/*.flac -o karaoke --stem accompaniment --skip-existing
      goes on where an interrupted run stopped
  pyunetsep separate concert.wav --start 1:00:00 --duration 4:00 --subtype FLOAT
      four minutes from the second hour, as 32-bit floats, which never clip
  ffmpeg -i film.mkv -f wav - | pyunetsep separate - --stem vocals -o - -f wav > vocals.wav
      reads a pipe and writes one

Stems keep the input's sample rate, channels, length, container and sample type (32-bit float WAV where the container
can only be read, as m4a). They add up to the input: to float rounding in float files, to one step a stem in integer
ones that do not clip; mp3, ogg and opus encode anew, and --exact does not keep the sum. Stems get their names only
once they are complete.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "separate",
        help="separate songs into vocals and accompaniment",
        description="Separates songs into stems: vocals and accompaniment.",
        epilog=EXAMPLES,
    )
    parser.add_argument("songs", nargs="+", metavar="SONG", help="audio file, or - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        default="stems",
        metavar="DIR",
        help="folder for the stems, one sub-folder a song (default: stems); - writes one --stem to standard output",
    )
    parser.add_argument(
        "-m",
        "--model",
        default=None,
        help="name, .safetensors file or folder; jansson2017 needs no download (default: spleeter-2stems)",
    )
    parser.add_argument(
        "-s", "--stem", action="append", metavar="STEM", help="write only this stem (may be given again; default: all)"
    )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the networks on a GPU (default: float16, with --exact float32); a CPU computes in float32",
    )
    parser.add_argument(
        "-f", "--format", type=str.lower, choices=FORMATS, help="container of the stems (default: the input's)"
    )
    parser.add_argument(
        "--subtype", type=str.upper, help="sample type of the stems: PCM_16, PCM_24, FLOAT, ... (default: the input's)"
    )
    parser.add_argument("--start", type=_seconds, default=0.0, metavar="TIME", help="skip so much: seconds or m:ss")
    parser.add_argument(
        "--duration", type=_seconds, metavar="TIME", help="separate no more than so much: seconds or m:ss"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace stems that exist")
    existing.add_argument("--skip-existing", action="store_true", help="leave stems that exist, make the others")
    parser.add_argument(
        "--exact", action="store_true", help="as the model's authors do it: band limit and seams included, sum not kept"
    )
    parser.add_argument("--rescale", action="store_true", help="turn a song's stems down together where one would clip")
    parser.add_argument("--sanitize", action="store_true", help="replace NaN and infinite samples by silence")
    parser.add_argument("--offline", action="store_true", help="never download a model")
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON object")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    to_stdout = args.output == "-"
    if args.songs.count("-") > 1:
        args.parser.error("standard input can be given only once")
    if to_stdout and (len(args.songs) != 1 or len(args.stem or []) != 1):
        args.parser.error("-o - needs exactly one SONG and one --stem")
    if not args.output:
        args.parser.error("-o needs the name of a folder, got an empty one")
    if args.duration == 0:
        args.parser.error("--duration must be above 0")
    if "-" in args.songs and sys.stdin.buffer.isatty():
        args.parser.error("standard input is a terminal; pipe a song into it")
    if to_stdout and sys.stdout.isatty():
        args.parser.error("standard output is a terminal; redirect it to a file or a pipe")
    if to_stdout and args.json:
        args.parser.error("--json and -o - would both write to standard output")

    from .. import audio
    from ..config import SeparatorConfig
    from ..separator import DEFAULT_MODEL, Separator

    separator = Separator.from_pretrained(
        args.model or DEFAULT_MODEL,
        device=args.device,
        config=SeparatorConfig(precision=args.precision),
        offline=args.offline,
    )
    options = {
        "stem": args.stem,
        "container": args.format,
        "subtype": args.subtype,
        "start_s": args.start,
        "duration_s": args.duration,
        "exact": args.exact,
        "rescale": args.rescale,
        "sanitize": args.sanitize,
        "overwrite": args.overwrite,
        "skip_existing": args.skip_existing,
    }
    names: dict[str, str] = {}  # of temporary files, to the user

    def shown(text: object) -> str:
        message = str(text)
        for name, flag in FLAGS.items():
            message = message.replace(name, flag)
        for temporary, name in names.items():
            message = message.replace(temporary, name)
        return message

    with ExitStack() as stack:
        songs, output = list(args.songs), args.output
        if "-" in songs:
            songs[songs.index("-")] = spooled = stack.enter_context(audio.spool_stdin(sys.stdin.buffer))
            names[spooled] = "standard input"
        if to_stdout:
            output = stack.enter_context(tempfile.TemporaryDirectory())
            names[output + os.sep] = "standard output: "
        bar = stack.enter_context(closing(_ProgressBar(len(songs), separator.device.type, shown)))
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = lambda message, *_, **__: bar.say(f"pyunetsep: warning: {shown(message)}")
        results = []
        try:
            for result in separator.separate_files(songs, output, progress=bar.show, **options):
                bar.finish(result)
                results.append(result)
        except OutputExistsError as error:  # two songs of one name
            raise OutputExistsError(shown(error)) from None
        if to_stdout and results[0].error is None:
            with open(results[0].outputs[args.stem[0]], "rb") as stem:
                shutil.copyfileobj(stem, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
    if args.json:
        reports = [_as_json(song, result, shown) for song, result in zip(args.songs, results, strict=True)]
        print(json.dumps({"device": str(separator.device), "results": reports}, indent=2))
    return SOME_FAILED if any(result.error for result in results) else DONE


class _ProgressBar(ProgressBar):
    """One bar a song on a terminal, and a line when it is done; nothing in a pipe but errors."""

    def __init__(self, songs: int, device: str, shown: Callable[[object], str]) -> None:
        super().__init__()
        self.songs, self.device, self.shown, self.finished = songs, device, shown, 0

    def show(self, done_s: float, total_s: float) -> None:
        if self.bar is None:
            self.begin(
                total=round(total_s, 1),
                desc=f"song {self.finished + 1} of {self.songs}" if self.songs > 1 else "separating",
                bar_format="{desc}: {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {remaining} left",
            )
        self.reach(done_s)

    def finish(self, result: FileResult) -> None:
        self.close()
        self.finished += 1
        song = self.shown(result.path)
        if result.error is not None:
            message = self.shown(result.error)
            self.say(f"pyunetsep: error: {message if message.startswith(song) else f'{song}: {message}'}")
        elif sys.stderr.isatty():
            written = [self.shown(path) for name, path in result.outputs.items() if name not in result.skipped]
            speed = f"{result.duration_s:.1f} s of audio in {result.elapsed_s:.1f} s on the {self.device}"
            self.say(f"{song}: {', '.join(written) or 'nothing to do'} ({speed})")


def _seconds(text: str) -> float:
    """A time as seconds, m:ss or h:mm:ss."""
    seconds = 0.0
    for part in text.split(":"):
        try:
            seconds = 60 * seconds + float(part)
        except ValueError:
            seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"want seconds, m:ss or h:mm:ss, got {text!r}")
    return seconds


def _as_json(song: str, result: FileResult, shown: Callable[[object], str]) -> dict[str, Any]:
    error = result.error
    return {
        "input": song,
        "outputs": {name: str(path) for name, path in result.outputs.items()},
        "skipped": result.skipped,
        "duration_s": result.duration_s,
        "elapsed_s": round(result.elapsed_s, 3),
        "peaks": result.peaks,
        "error": None if error is None else {"type": type(error).__name__, "message": shown(error)},
    }
