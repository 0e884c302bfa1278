"""The command line: one module a subcommand, each importing what is heavy only when it runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from .. import __version__
from ..errors import (
    CheckpointError,
    DeviceError,
    InvalidAudioError,
    ModelUnavailableError,
    OutputExistsError,
    PyunetsepError,
    TrainingError,
    UnknownModelError,
)
from . import arguments, bench, catalogue, demo, doctor, evaluate, export, models, plot, separate, train
from .exit_codes import INTERRUPTED, MODEL_OR_DEVICE, SOME_FAILED, USAGE

DESCRIPTION = "Separates the singing voice of a song from its accompaniment."
EPILOG = """examples:
  pyunetsep separate song.mp3                 stems/song/vocals.mp3, stems/song/accompaniment.mp3
  pyunetsep separate *.flac -o karaoke --stem accompaniment
  pyunetsep catalogue songs.csv -o stems      all songs of a table, on all cores or a Ray cluster
  pyunetsep plot song.mp3                     song.png: spectrograms of song and stems, and the mask
  pyunetsep demo                              a page to drop songs on and hear their stems
  pyunetsep evaluate --data musdb18hq --split test
  pyunetsep models list
  pyunetsep doctor
  pyunetsep bench

exit codes: 0 all done, 1 some inputs failed, or a disk is full, 2 usage, 3 model or device, 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of examples; argparse makes the commands' parsers of the same class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="pyunetsep", description=DESCRIPTION, epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"pyunetsep {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (separate, catalogue, plot, demo, train, evaluate, models, export, doctor, bench):
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every message about a mistake is one line on stderr."""
    _open_closed_streams()
    args = parser().parse_args(argv)
    with _termination_is_an_interrupt():
        try:
            code = args.run(args)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            code, message = INTERRUPTED, "interrupted; nothing half-written is left"
        except BrokenPipeError:  # whoever read our output has had enough
            code, message = SOME_FAILED, ""
        except (CheckpointError, DeviceError, ModelUnavailableError, UnknownModelError, ImportError) as error:
            code, message = MODEL_OR_DEVICE, f"error: {error}"
        except OutputExistsError as error:
            code, message = USAGE, f"error: {error}"
        except (OSError, TrainingError, InvalidAudioError) as error:
            code, message = SOME_FAILED, f"error: {error}"
        except (PyunetsepError, ValueError, TypeError) as error:
            code, message = USAGE, f"error: {error}"
        if message:
            with suppress(OSError):  # the terminal may be gone
                print(f"pyunetsep: {message}", file=sys.stderr)
        _drop_unwritable_output()
    return code


@contextmanager
def _termination_is_an_interrupt() -> Iterator[None]:
    """SIGTERM, and the SIGHUP of a closed terminal, stop a command as Ctrl-C does, so that it cleans up."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    in_main_thread = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    # nohup ignores SIGHUP, and a program that calls main() may have handlers of its own
    deadly = [number for number in numbers if in_main_thread and signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(*_: object) -> None:
        for number in deadly:  # once is enough: the clean-up must not be interrupted
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in deadly:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


def _open_closed_streams() -> None:
    """Started with `>&-`, Python has no such stream, and the first file that is opened would get its number: what a
    library then prints would go into a stem."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        descriptor = os.open(os.devnull, os.O_WRONLY)
        if descriptor != number and not _is_open(number):
            os.dup2(descriptor, number)
        setattr(sys, name, arguments.ClosedStream(os.fdopen(descriptor, "wb")))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _drop_unwritable_output() -> None:
    """Python writes out what is left when it ends, and would complain again, with an exit code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
