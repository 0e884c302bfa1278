"""`pyunetsep evaluate`: songs with known stems in, scores out."""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import closing

from .exit_codes import DONE, SOME_FAILED
from .progress import ProgressBar

SPLITS = ("all", "train", "validation", "test")
METRICS = ("v4", "sdr", "nsdr", "band")

EXAMPLES = """examples:
  pyunetsep evaluate --data musdb18hq --split test --json scores.json --plot scores.png
      the default model; the same command goes on where an interrupted one stopped
  pyunetsep evaluate --data songs -m spleeter-2stems -m mine.safetensors -m oracle -m mixture
      two models and both yardsticks, as a table
  pyunetsep evaluate --data mir1k/manifest.csv --only 'singer-0*' --metrics nsdr --equal-levels
      as MIR-1K is used: vocals and accompaniment at 0 dB, NSDR at 8192 Hz, pieces of 10 s

metrics, all in dB; silent stems, for which one is not defined, are left out and counted:
  v4    BSS Eval v4 as museval computes it: SDR, SIR, ISR, SAR; median over frames of 1 s, then over songs.
        'SDR heard' leaves out frames with a stem 60 dB below the mixture: what lossy files have for silence
  sdr   SDR over whole songs, as the MDX and SDX challenges define it
  nsdr  BSS Eval v3 as mir_eval computes it, on 8192 Hz mono: NSDR = SDR less the mixture's, GNSDR, GSIR, GSAR
        its means weighted by length
  band  the plain energy ratio less the mixture's: below 4096 Hz, above, and in the full band

Models are separated as `pyunetsep separate` does it. 'oracle' is the ideal ratio mask, |V|^2 / (|V|^2 + |A|^2) on
frames of 4096 samples every 1024 (1024 every 256 at rates up to 16 kHz, nsdr's among them); 'mixture' is the song as it
is. v4 takes minutes and gigabytes for a long song; it and nsdr need: pip install 'pyunetsep[evaluate]'
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="score models on songs with known stems",
        description="Scores models on songs with known vocals and accompaniment.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders of stems (song/vocals.*, song/accompaniment.*; MUSDB18), or CSV manifests",
    )
    parser.add_argument(
        "-m",
        "--model",
        action="append",
        help="name, .safetensors file or folder, 'oracle' or 'mixture'; may be given again (default: spleeter-2stems)",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="all", help="only songs that the data puts there (default: all)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="only songs or groups of such names")
    parser.add_argument(
        "--metrics",
        type=_metrics,
        default=METRICS,
        metavar="LIST",
        help=f"of {','.join(METRICS)} (default: all)",
    )
    parser.add_argument(
        "--piece", type=_seconds, default=10.0, metavar="SECONDS", help="length of nsdr's pieces (default: 10)"
    )
    parser.add_argument(
        "--equal-levels", action="store_true", help="for nsdr, mix each piece's stems at 0 dB, and separate that"
    )
    parser.add_argument("--exact", action="store_true", help="run models as their authors do it")
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--offline", action="store_true", help="never download a model")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="keep all scores in this file, song by song, and go on from what it holds; - prints them",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin the --json file anew")
    parser.add_argument("--plot", metavar="FILE", help="draw a box plot: .png, .svg, .pdf")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    if args.model and len(set(args.model)) < len(args.model):
        args.parser.error("the same --model is given twice")
    if args.equal_levels and "nsdr" not in args.metrics:
        args.parser.error("--equal-levels is for the metric nsdr, which --metrics leaves out")
    if args.overwrite and args.json in (None, "-"):
        args.parser.error("--overwrite is for the file of --json")
    if args.json == "" or args.plot == "":
        args.parser.error("--json and --plot need the name of a file, got an empty one")

    from ..errors import OutputExistsError
    from ..evaluation import ScoringOptions, evaluate, table
    from ..evaluation.boxplot import box_plot, check_plot

    if args.plot:
        check_plot(args.plot)
    options = ScoringOptions(metrics=args.metrics, piece_s=args.piece, equal_levels=args.equal_levels, exact=args.exact)
    with closing(_ProgressBar()) as bar:
        try:
            results = evaluate(
                args.data,
                args.model,
                split=args.split,
                only=args.only,
                options=options,
                device=args.device,
                offline=args.offline,
                results=None if args.json == "-" else args.json,
                overwrite=args.overwrite,
                progress=bar.show,
                failed=lambda song, why: bar.say(f"pyunetsep: error: {song}: {why}"),
            )
        except OutputExistsError as error:
            raise OutputExistsError(str(error).replace(" (overwrite=True)", "")) from None
    if args.json == "-":
        print(json.dumps(results, indent=1, ensure_ascii=False))
    elif args.json is None or sys.stdout.isatty():
        print(table(results))
    if args.plot:
        box_plot(results, args.plot)
    return SOME_FAILED if results["failed"] else DONE


class _ProgressBar(ProgressBar):
    """One bar for all songs."""

    def show(self, done: int, total: int, what: str) -> None:
        if self.bar is None:
            self.begin(total=total, bar_format="{percentage:3.0f}% |{bar}| {desc}{remaining} left")
        self.bar.set_description_str(f"{what}, " if what else "", refresh=False)
        self.reach(done)
        self.bar.refresh()


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not set(names) <= set(METRICS):
        raise argparse.ArgumentTypeError(f"got {text!r}, wants of {','.join(METRICS)}, each once")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, wants 1 or more")
    return seconds
