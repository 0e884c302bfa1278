"""Options that several commands have, and their names in messages."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import SeparatorConfig
    from ..separator import Separator

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")

# what messages of the Python API call the options -> what the user calls them
FLAGS = {
    "see overwrite and skip_existing": "see --overwrite and --skip-existing",
    "; see overwrite": "; see --overwrite",
    "start_s:": "--start:",
    "duration_s:": "--duration:",
    "latency_s must": "--latency must",
    "template:": "--template:",
    "sanitize=True (--sanitize)": "--sanitize",
}


class ClosedStream(io.TextIOWrapper):
    """In the place of a standard stream that is closed: what is written is dropped."""


def add_model(parser: argparse.ArgumentParser, devices: str = "auto, cpu, cuda or cuda:N") -> None:
    """-m, -d and --offline: what `separator` makes a Separator of."""
    parser.add_argument(
        "-m",
        "--model",
        default=None,
        help="name, .safetensors file or folder; jansson2017 needs no download (default: spleeter-2stems)",
    )
    parser.add_argument("-d", "--device", default="auto", help=f"{devices} (default: auto)")
    parser.add_argument("--offline", action="store_true", help="never download a model")


def add_stem(parser: argparse.ArgumentParser) -> None:
    """-s, which may come several times."""
    parser.add_argument(
        "-s", "--stem", action="append", metavar="STEM", help="write only this stem (may be given again; default: all)"
    )


def add_format(parser: argparse.ArgumentParser, default: str) -> None:
    """-f; `default` is whose format stems have without it."""
    parser.add_argument(
        "-f", "--format", type=str.lower, choices=FORMATS, help=f"container of the stems (default: {default})"
    )


def add_excerpt(parser: argparse.ArgumentParser, verb: str) -> None:
    """--start and --duration, of which the latter must not be 0: see `check_excerpt`."""
    parser.add_argument("--start", type=seconds, default=0.0, metavar="TIME", help="skip so much: seconds or m:ss")
    parser.add_argument(
        "--duration", type=seconds, metavar="TIME", help=f"{verb} no more than so much: seconds or m:ss"
    )


def check_excerpt(args: argparse.Namespace) -> None:
    if args.duration == 0:
        args.parser.error("--duration must be above 0")


def separator(args: argparse.Namespace, config: SeparatorConfig | None = None) -> Separator:
    from ..separator import DEFAULT_MODEL, Separator

    return Separator.from_pretrained(
        args.model or DEFAULT_MODEL, device=args.device, config=config, offline=args.offline
    )


def seconds(text: str) -> float:
    """A time as seconds, m:ss or h:mm:ss."""
    total = 0.0
    for part in text.split(":"):
        try:
            total = 60 * total + float(part)
        except ValueError:
            total = math.nan
    if not 0 <= total < math.inf:
        raise argparse.ArgumentTypeError(f"want seconds, m:ss or h:mm:ss, got {text!r}")
    return total


def clock(time_s: float) -> str:
    """h:mm:ss, or m:ss below an hour, to the nearest second."""
    minutes, second = divmod(round(time_s), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def in_flags(message: object) -> str:
    """A message of the Python API with the options named as the user knows them."""
    text = str(message)
    for name, flag in FLAGS.items():
        text = text.replace(name, flag)
    return text


@contextmanager
def flags_in_messages() -> Iterator[None]:
    """Errors that leave the context name options as the user knows them."""
    from ..errors import OutputExistsError

    try:
        yield
    except (OutputExistsError, ValueError) as error:
        if (text := in_flags(error)) == str(error):
            raise
        raise type(error)(text) from None
