"""`pyunetsep separate`: songs in, stems out."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..separator import FileResult

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")

EXAMPLES = """examples:
  pyunetsep separate song.mp3
      writes stems/song/vocals.mp3 and stems/song/accompaniment.mp3
  pyunetsep separate album/*.flac -o karaoke --stem accompaniment --skip-existing
      goes on where an interrupted run stopped
  pyunetsep separate concert.wav --start 3600 --duration 240 --subtype FLOAT
      four minutes from the second hour, as 32-bit floats, which never clip
  ffmpeg -i film.mkv -f wav - | pyunetsep separate - --stem vocals -o - > vocals.wav
      reads a pipe and writes one

Stems keep the input's sample rate, channels, length, container and sample type, and add up to the input (except with
--exact). They get their names only once they are complete.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "separate",
        help="separate songs into vocals and accompaniment",
        description="Separates songs into stems: vocals and accompaniment.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        "-m", "--model", default=None, help="name, .safetensors file or folder (default: spleeter-2stems)"
    )
    parser.add_argument(
        "-s", "--stem", action="append", metavar="STEM", help="write only this stem (may be given again; default: all)"
    )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("-f", "--format", choices=FORMATS, help="container of the stems (default: the input's)")
    parser.add_argument(
        "--subtype", type=str.upper, help="sample type of the stems: PCM_16, PCM_24, FLOAT, ... (default: the input's)"
    )
    parser.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="skip so much of each song")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="separate no more than so much of each song")
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
    if to_stdout and args.json:
        args.parser.error("--json and -o - would both write to standard output")

    from .. import audio
    from ..separator import DEFAULT_MODEL, Separator

    separator = Separator.from_pretrained(args.model or DEFAULT_MODEL, device=args.device, offline=args.offline)
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
    with ExitStack() as stack:
        stack.enter_context(_termination_is_an_interrupt())
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _show_warning
        songs = list(args.songs)
        if "-" in songs:
            spooled = stack.enter_context(audio.spool_stdin(sys.stdin.buffer))
            songs[songs.index("-")] = spooled
        output = stack.enter_context(tempfile.TemporaryDirectory()) if to_stdout else args.output
        results = []
        with _ProgressBar(len(songs)) as bar:
            for result in separator.separate_files(songs, output, progress=bar.show, **options):
                bar.finish(result)
                results.append(result)
        if to_stdout and results[0].error is None:
            with open(results[0].outputs[args.stem[0]], "rb") as stem:
                shutil.copyfileobj(stem, sys.stdout.buffer, 1 << 20)
            sys.stdout.buffer.flush()
    if args.json:
        print(json.dumps({"device": str(separator.device), "results": [_as_json(r) for r in results]}, indent=2))
    return 1 if any(result.error for result in results) else 0


class _ProgressBar:
    """One bar a song on a terminal, and a line when it is done; nothing in a pipe but errors."""

    def __init__(self, songs: int) -> None:
        from tqdm import tqdm

        self.songs, self.finished = songs, 0
        self.bar: Any = None
        self.make = lambda total_s: tqdm(
            total=round(total_s, 1),
            leave=False,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            desc=f"song {self.finished + 1} of {self.songs}" if self.songs > 1 else "separating",
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {remaining} left",
        )

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()

    def show(self, done_s: float, total_s: float) -> None:
        if self.bar is None:
            self.bar = self.make(total_s)
        self.bar.update(done_s - self.bar.n)

    def finish(self, result: FileResult) -> None:
        self._close()
        self.finished += 1
        if result.error is not None:
            message = str(result.error)
            place = "" if message.startswith(result.path) else f"{result.path}: "
            print(f"pyunetsep: error: {place}{message}", file=sys.stderr)
        elif sys.stderr.isatty():
            written = [str(path) for name, path in result.outputs.items() if name not in result.skipped]
            speed = f"{result.duration_s:.1f} s of audio in {result.elapsed_s:.1f} s"
            print(f"{result.path}: {', '.join(written) or 'nothing to do'} ({speed})", file=sys.stderr)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _as_json(result: FileResult) -> dict[str, Any]:
    return {
        "input": result.path,
        "outputs": {name: str(path) for name, path in result.outputs.items()},
        "skipped": result.skipped,
        "duration_s": result.duration_s,
        "elapsed_s": round(result.elapsed_s, 3),
        "peaks": result.peaks,
        "error": None if result.error is None else {"type": type(result.error).__name__, "message": str(result.error)},
    }


@contextmanager
def _termination_is_an_interrupt() -> Iterator[None]:
    """A run that is told to terminate removes its temporary files, as an interrupted one does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"pyunetsep: warning: {message}", file=sys.stderr)
