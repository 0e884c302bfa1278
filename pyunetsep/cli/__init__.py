"""The command line: one module a subcommand, each importing what is heavy only when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import CheckpointError, DeviceError, ModelUnavailableError, PyunetsepError, UnknownModelError
from . import doctor, models, separate

DONE, SOME_FAILED, USAGE, MODEL_OR_DEVICE, INTERRUPTED = 0, 1, 2, 3, 130

DESCRIPTION = "Separates the singing voice of a song from its accompaniment."
EPILOG = """examples:
  pyunetsep separate song.mp3                 stems/song/vocals.mp3, stems/song/accompaniment.mp3
  pyunetsep separate *.flac -o karaoke --stem accompaniment
  pyunetsep models list
  pyunetsep doctor

exit codes: 0 all done, 1 some inputs failed, 2 usage, 3 model or device, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="pyunetsep", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"pyunetsep {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (separate, models, doctor):
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every message about a mistake is one line on stderr."""
    args = parser().parse_args(argv)
    problem: Exception
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("pyunetsep: interrupted; nothing half-written is left", file=sys.stderr)
        return INTERRUPTED
    except (CheckpointError, DeviceError, ModelUnavailableError, UnknownModelError) as error:
        code, problem = MODEL_OR_DEVICE, error
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except (PyunetsepError, ValueError, TypeError, OSError) as error:
        code, problem = USAGE, error
    print(f"pyunetsep: error: {problem}", file=sys.stderr)
    return code
