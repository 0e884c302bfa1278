"""`pyunetsep demo`: a page to hear what a model does."""

from __future__ import annotations

import argparse
import math
import threading
from contextlib import suppress

from . import arguments
from .exit_codes import DONE

EXAMPLES = """examples:
  pyunetsep demo
      serves the page at http://127.0.0.1:7860/, for this machine alone, until Ctrl-C
  pyunetsep demo --model jansson2017 --offline --port 8000
      the model inside the package; nothing is fetched from anywhere

Drop a song on the page: its stems play in step, with a slider between vocals and accompaniment, and can be downloaded.
Songs, stems and pictures lie in a temporary folder (TMPDIR). They go when the page is closed, or when nobody has asked
for them for --keep minutes, or when the command ends.

--host with another address than 127.0.0.1 lets everyone who reaches this machine use its processor and disk, without a
password and unencrypted. Do that only in a network that you trust, or behind a proxy that asks who comes.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="serve a page that separates and plays songs",
        description="Serves a page on which songs are dropped, separated, played and downloaded.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--port", type=_port, default=7860, metavar="N", help="of the page; 0 takes a free one (default: 7860)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="who may come: see below (default: 127.0.0.1)"
    )
    arguments.add_model(parser)
    parser.add_argument(
        "--max-mb",
        type=_positive,
        default=200.0,
        metavar="N",
        help="largest file that is taken, in units of 2^20 bytes (default: 200)",
    )
    parser.add_argument(
        "--max-minutes", type=_positive, default=30.0, metavar="N", help="longest song that is taken (default: 30)"
    )
    parser.add_argument(
        "--keep", type=_positive, default=60.0, metavar="MINUTES", help="remove files unused for so long (default: 60)"
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    if not args.host:
        args.parser.error("--host needs an address, got an empty one; 0.0.0.0 is all that this machine has")

    from ..demo import DemoServer, Limits

    limits = Limits(max_bytes=round(args.max_mb * 2**20), max_s=60 * args.max_minutes, keep_s=60 * args.keep)
    with DemoServer(arguments.separator(args), host=args.host, port=args.port, limits=limits) as server:
        print(server.url, flush=True)
        with suppress(KeyboardInterrupt):  # how it is meant to end
            threading.Event().wait()
    return DONE


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"want a number from 0 to 65535, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"want a number above 0, got {text!r}")
    return number
