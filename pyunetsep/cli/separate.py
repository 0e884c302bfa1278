"""`pyunetsep separate`: songs in, stems out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import warnings
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, OutputExistsError
from . import arguments
from .exit_codes import DONE, SOME_FAILED
from .progress import SongBar

if TYPE_CHECKING:
    from ..separator import FileResult

PRECISIONS = ("float32", "float16", "bfloat16")

EXAMPLES = """examples:
  pyunetsep separate song.mp3
      writes stems/song/vocals.mp3 and stems/song/accompaniment.mp3
  pyunetsep separate music --recursive -o karaoke --stem accompaniment --skip-existing
      all songs of a folder and the folders below; goes on where an interrupted run stopped
  pyunetsep separate album/*.flac -o stems --template "{name} ({stem}).{ext}"
      stems/song (vocals).flac and stems/song (accompaniment).flac
  pyunetsep separate concert.wav --start 1:00:00 --duration 4:00 --subtype FLOAT
      four minutes from the second hour, as 32-bit floats, which never clip
  ffmpeg -i film.mkv -f wav - | pyunetsep separate - --stem vocals -o - > vocals.wav
      reads a pipe and writes one, while the film is still being decoded; --latency 1 answers within a second

Stems keep the input's sample rate, channels, length, container and sample type (32-bit float WAV where the container
can only be read, as m4a). They add up to the input: to float rounding in float files, to one step a stem in integer
ones that do not clip; mp3, ogg and opus encode anew, and --exact does not keep the sum. Stems get their names only
once they are complete; of those in a pipe, an error can only stop the rest.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "separate",
        help="separate songs into vocals and accompaniment",
        description="Separates songs into stems: vocals and accompaniment.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "songs", nargs="+", metavar="SONG", help="audio file, folder of audio files, pattern, or - for standard input"
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="of folders, also take those below, but for links"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="stems",
        metavar="DIR",
        help="folder for the stems, one sub-folder a song (default: stems); - writes one --stem to standard output",
    )
    parser.add_argument(
        "-t",
        "--template",
        metavar="NAME",
        help="of stems within the folder (default: {folder}/{name}/{stem}.{ext}, folder being that of the song below a "
        "folder that was given)",
    )
    arguments.add_model(parser)
    arguments.add_stem(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the networks on a GPU (default: float16, with --exact float32); a CPU computes in float32",
    )
    arguments.add_format(parser, "the input's")
    parser.add_argument(
        "--subtype", type=str.upper, help="sample type of the stems: PCM_16, PCM_24, FLOAT, ... (default: the input's)"
    )
    arguments.add_excerpt(parser, "separate")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace stems that exist")
    existing.add_argument("--skip-existing", action="store_true", help="leave stems that exist, make the others")
    parser.add_argument(
        "--exact", action="store_true", help="as the model's authors do it: band limit and seams included, sum not kept"
    )
    parser.add_argument("--rescale", action="store_true", help="turn a song's stems down together where one would clip")
    parser.add_argument("--sanitize", action="store_true", help="replace NaN and infinite samples by silence")
    parser.add_argument(
        "-j", "--jobs", type=_count, metavar="N", help="songs at a time (default: a core each, 8 at most; on a GPU 4)"
    )
    parser.add_argument(
        "--latency",
        type=arguments.seconds,
        metavar="TIME",
        help="with -o -: the longest that a sample waits for its stem, in seconds (default: about 12, with which the "
        "stem is that of the whole song)",
    )
    parser.add_argument("--json", action="store_true", help="print what was done as one JSON object")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    _check(args)

    from .. import audio
    from ..config import SeparatorConfig
    from ..song_files import FileResult, OutputTemplate
    from ..song_search import find_songs

    songs = find_songs([song for song in args.songs if song != "-"], recursive=args.recursive, besides=args.output)
    if args.output == "-" and len(songs) > 1:
        args.parser.error(f"-o - writes the stem of one SONG, found {len(songs)}")
    if "-" in args.songs:
        with suppress(AttributeError, OSError, ValueError):  # some shells and programs leave it in the other mode
            os.set_blocking(sys.stdin.fileno(), True)
    separator = arguments.separator(args, SeparatorConfig(precision=args.precision))
    options = {
        "container": args.format,
        "subtype": args.subtype,
        "start_s": args.start,
        "duration_s": args.duration,
        "exact": args.exact,
        "rescale": args.rescale,
        "sanitize": args.sanitize,
    }
    shown = _Names()
    with ExitStack() as stack:
        bar = stack.enter_context(closing(_ProgressBar(len(songs) or 1, separator.device.type, shown)))
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = lambda message, *_, **__: bar.say(f"pyunetsep: warning: {shown(message)}")
        if args.output == "-":
            source = songs[0] if songs else sys.stdin.buffer
            try:
                result = separator.separate_pipe(
                    source, sys.stdout.buffer, args.stem[0], latency_s=args.latency, progress=bar.show, **options
                )
            except BrokenPipeError:
                raise
            except (OSError, ValueError, DeviceError) as error:
                result = FileResult(os.fspath(songs[0]) if songs else "standard input", error=error)
            bar.finish(result)
            return SOME_FAILED if result.error else DONE
        paths: list[str | os.PathLike[str]] = [*songs]
        if "-" in args.songs:
            spooled = stack.enter_context(audio.spooled(sys.stdin.buffer))
            shown.names[spooled] = "standard input"
            paths.insert(args.songs.index("-"), spooled)  # a folder before it counts as one
        bar.songs = len(paths)
        jobs = min(args.jobs or separator.default_workers, len(paths))
        results: dict[str, FileResult] = {}
        try:
            finished = separator.separate_files(
                paths,
                args.output,
                workers=jobs,
                template=args.template or OutputTemplate.DEFAULT,
                stem=args.stem,
                overwrite=args.overwrite,
                skip_existing=args.skip_existing,
                progress=bar.show,
                **options,
            )
        except OutputExistsError as error:  # two songs of one name
            raise OutputExistsError(shown(error)) from None
        try:
            for result in finished:
                bar.finish(result)
                results[result.path] = result
        finally:  # also of what was done before an interrupt
            if args.json:
                done = [results[os.fspath(path)] for path in paths if os.fspath(path) in results]
                reports = [_as_json(result, shown) for result in done]
                print(json.dumps({"device": str(separator.device), "results": reports}, indent=2))
    return SOME_FAILED if any(result.error for result in results.values()) else DONE


def _check(args: argparse.Namespace) -> None:
    to_stdout = args.output == "-"
    if args.songs.count("-") > 1:
        args.parser.error("standard input can be given only once")
    if to_stdout and (len(args.songs) != 1 or len(args.stem or []) != 1):
        args.parser.error("-o - needs exactly one SONG and one --stem")
    if not args.output:
        args.parser.error("-o needs the name of a folder, got an empty one")
    if to_stdout and (args.template or args.jobs or args.overwrite or args.skip_existing):
        args.parser.error("--template, --jobs, --overwrite and --skip-existing are for stems in files, not for -o -")
    if args.latency is not None and not to_stdout:
        args.parser.error("--latency is for -o -, a stem that is written as it is made")
    arguments.check_excerpt(args)
    if "-" in args.songs and sys.stdin is None:
        args.parser.error("standard input is closed")
    if "-" in args.songs and sys.stdin.buffer.isatty():
        args.parser.error("standard input is a terminal; pipe a song into it")
    if to_stdout and isinstance(sys.stdout, arguments.ClosedStream):
        args.parser.error("standard output is closed")
    if to_stdout and sys.stdout.isatty():
        args.parser.error("standard output is a terminal; redirect it to a file or a pipe")
    if to_stdout and args.json:
        args.parser.error("--json and -o - would both write to standard output")


class _Names:
    """Messages with options and temporary files named as the user knows them."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def __call__(self, text: object) -> str:
        message = arguments.in_flags(text)
        for temporary, name in self.names.items():
            message = message.replace(temporary, name)
        return message


class _ProgressBar(SongBar):
    """A song's seconds, or of several the songs, on a terminal, and a line when one is done; in a pipe only errors."""

    def __init__(self, songs: int, device: str, shown: _Names) -> None:
        super().__init__()
        self.songs, self.device, self.shown = songs, device, shown
        self.finished = 0
        self.shares: dict[int, float] = {}  # of the songs in work, by their threads
        self.lock = threading.Lock()

    def show(self, done_s: float, total_s: float) -> None:
        """Called from the threads in which songs are separated."""
        with self.lock:
            if self.songs > 1:
                self.shares[threading.get_ident()] = done_s / total_s
                self._show_songs()
                return
            super().show(done_s, total_s)

    def finish(self, result: FileResult) -> None:
        with self.lock:
            if self.songs == 1:
                self.close()
            self.finished += 1
            song = self.shown(result.path)
            if result.error is not None:
                self.say_error(song, self.shown(result.error))
            elif sys.stderr.isatty():
                written = [self.shown(path) for name, path in result.outputs.items() if name not in result.skipped]
                speed = f"{result.duration_s:.1f} s of audio in {result.elapsed_s:.1f} s on the {self.device}"
                if not result.outputs:
                    written = ["standard output"]
                self.say(f"{song}: {', '.join(written) or 'nothing to do'} ({speed})")
            if self.songs > 1:
                self.shares = {thread: share for thread, share in self.shares.items() if share < 1}
                self._show_songs()

    def _show_songs(self) -> None:
        if self.bar is None:
            self.begin(
                total=self.songs,
                bar_format="separating: {percentage:3.0f}% |{bar}| {n:.1f} of {total} songs, {remaining} left",
            )
        self.reach(min(self.songs, self.finished + sum(share for share in self.shares.values() if share < 1)))


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"want a whole number from 1 on, got {text!r}")
    return number


def _as_json(result: FileResult, shown: _Names) -> dict[str, Any]:
    error = result.error
    return {
        "input": shown(result.path),
        "outputs": {name: str(path) for name, path in result.outputs.items()},
        "skipped": result.skipped,
        "duration_s": result.duration_s,
        "elapsed_s": round(result.elapsed_s, 3),
        "peaks": result.peaks,
        "error": None if error is None else {"type": type(error).__name__, "message": shown(error)},
    }
