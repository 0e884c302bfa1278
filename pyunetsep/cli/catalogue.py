"""`pyunetsep catalogue`: a manifest of songs in, their stems and a manifest of stems out, on a Ray cluster."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING

from . import arguments
from .exit_codes import DONE, SOME_FAILED
from .progress import ProgressBar

if TYPE_CHECKING:
    from ..catalogue import Record

EXAMPLES = """examples:
  pyunetsep catalogue songs.csv -o stems
      separates each song in the column path on all cores of this machine, and writes stems/manifest.parquet;
      the same command again goes on where it was stopped, and tries again what failed
  pyunetsep catalogue songs.parquet -o /shared/stems --manifest stems.csv --address auto --device cuda
      one worker on each GPU of a Ray cluster, on which paths mean the same everywhere
  pyunetsep catalogue songs.csv -o stems --stem vocals --format flac --workers 4

A column output in the manifest names the folder of a song's stems, from DIR on; without it, that is named after the
song. Other columns pass through to the manifest of stems, which has a row a song in the same order: files and peaks of
its stems, durations, and errors. Until that is written, a file beside it, .journal, has what is known so far.

Each worker is a process with a model of its own and its share of the cores. A song whose worker dies is given to
another one. Needs: pip install 'pyunetsep[ray]'

exit codes: 0 all done, 1 some songs failed, 2 usage or manifest, 3 model, device or cluster, 130 interrupted
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "catalogue",
        help="separate the songs of a manifest on a Ray cluster",
        description="Separates the songs of a manifest by several workers, on this machine or a Ray cluster.",
        epilog=EXAMPLES,
    )
    parser.add_argument("songs", metavar="MANIFEST", help="table of songs with a column path: .csv or .parquet")
    parser.add_argument("-o", "--output", default="stems", metavar="DIR", help="folder for the stems (default: stems)")
    parser.add_argument(
        "--manifest", metavar="FILE", help="manifest of stems: .csv or .parquet (default: DIR/manifest.parquet)"
    )
    arguments.add_model(parser, devices="auto, which takes GPUs where there are any, cpu or cuda")
    arguments.add_stem(parser)
    arguments.add_format(parser, "the song's")
    parser.add_argument("--overwrite", action="store_true", help="make all stems anew, also those that exist")
    cluster = parser.add_argument_group("the cluster")
    cluster.add_argument(
        "--address",
        metavar="ADDRESS",
        help="of a Ray cluster, or auto (default: RAY_ADDRESS, or one on this machine for as long as it takes)",
    )
    cluster.add_argument(
        "--workers", type=int, metavar="N", help="how many, each with its own model (default: one a core, or one a GPU)"
    )
    cluster.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="0.5 has two workers share a GPU (default: 1, or no GPU)"
    )
    cluster.add_argument(
        "--retries", type=int, default=2, metavar="N", help="for a song whose worker died (default: %(default)s)"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    if not args.output:
        args.parser.error("-o needs the name of a folder, got an empty one")

    from .. import catalogue
    from ..separator import DEFAULT_MODEL

    with arguments.flags_in_messages(), closing(_ProgressBar()) as bar:
        results = catalogue.separate(
            args.songs,
            args.output,
            args.manifest,
            model=args.model or DEFAULT_MODEL,
            device=args.device,
            workers=args.workers,
            gpus_per_worker=args.gpus_per_worker,
            retries=args.retries,
            address=args.address,
            offline=args.offline,
            progress=bar.show,
            stem=args.stem,
            container=args.format,
            overwrite=args.overwrite,
        )
    return SOME_FAILED if results["error"].null_count < results.num_rows else DONE


class _ProgressBar(ProgressBar):
    """One bar for all songs on a terminal; in a pipe, as beside the bar, errors and workers that died."""

    def show(self, done: int, total: int, record: Record) -> None:
        if self.bar is None:
            self.begin(
                total=total,
                bar_format="separating: {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} songs, {remaining} left",
            )
        if record.error is not None:
            self.say_error(record.path, record.error)
        elif record.attempts is not None and record.attempts > 1 and not record.skipped:
            self.say(f"pyunetsep: warning: {record.path}: done at attempt {record.attempts}, a worker died before")
        self.reach(done)
