"""`pyunetsep train`: stems in, a model out."""

from __future__ import annotations

import argparse
import json
import os
import typing
from collections.abc import Iterator
from contextlib import closing
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .exit_codes import DONE
from .progress import ProgressBar

if TYPE_CHECKING:
    from ..training.config import TrainingConfig

METAVARS = {int: "N", float: "X", str: "NAME"}
AUGMENTATION = "augmentation"  # a table of its own in the file

EXAMPLES = """examples:
  pyunetsep train --data my-songs -o runs/mine
      trains vocals and accompaniment side by side; my-songs/<song>/vocals.wav and accompaniment.wav, any format
  pyunetsep train --data musdb18hq -o runs/musdb --steps 50000 --precision bfloat16
      trains on the train folder; a tenth of its songs validates, the test folder is left alone
  pyunetsep train --resume -o runs/mine
      goes on where an interrupted run stopped; on a CPU with as many threads, to the very same weights
  pyunetsep train --data my-songs --init jansson2017 --freeze-all-but 4 --learning-rate 0.0001 -o runs/tuned
      fine-tunes the last four blocks of a model
  pyunetsep train --data my-songs --init spleeter-2stems --init-by transfer -o runs/mine
      begins with what Spleeter's weights know: better than random ones as long as there is little data or time
  torchrun --nproc-per-node 4 -m pyunetsep train --data my-songs -o runs/mine
      four processes, on a GPU each where there are some
  pyunetsep separate song.mp3 --model runs/mine/model.safetensors
      uses what was trained

A run's folder has config.toml (which --config takes), log.jsonl, curves.png, separated examples of each validation,
checkpoint.safetensors to go on from, and model.safetensors: the best so far by the validation songs. Decoded recordings
are kept, so that the next run begins at once.

exit codes: 0 trained, 1 a file cannot be read or written, 2 usage or data, 3 model or device, 130 interrupted
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a model on stems",
        description="Trains a model on folders of stems.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of the options below; flags override it")
    parser.add_argument(
        "-o", "--output", default="runs/model", metavar="DIR", help="the run's folder (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    parser.add_argument("--cache", metavar="DIR", help="where decoded recordings are kept (default: the user's cache)")
    parser.add_argument(
        "--strict", action="store_true", help="stop at a recording that cannot be used, not go on without"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard into the run's folder")
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a CPU (default: all)")
    parser.add_argument("--json", action="store_true", help="print a report on standard output")
    parser.set_defaults(run=_run)
    for title, configuration in _groups().items():
        group = parser.add_argument_group(title)
        for option, kind in _options(configuration):
            _add_option(group, option, kind)


def _groups() -> dict[str, Any]:
    """The titles of the help's groups of options, and the configurations that have them."""
    from ..training.config import AugmentationConfig, TrainingConfig

    return {"the run": TrainingConfig, AUGMENTATION: AugmentationConfig}


def _options(configuration: Any) -> Iterator[tuple[Field[Any], Any]]:
    """The fields that have flags, and their types."""
    types = typing.get_type_hints(configuration)
    return ((option, types[option.name]) for option in fields(configuration) if "help" in option.metadata)


def _add_option(group: argparse._ArgumentGroup, option: Field[Any], kind: Any) -> None:
    """A flag for a field of a configuration; only flags that are given have a value."""
    default = "" if option.default in ((), "") else f" (default: {option.default})"
    settings: dict[str, Any] = {
        "dest": option.name,
        "default": argparse.SUPPRESS,
        "help": (option.metadata["help"] + default).replace("%", "%%"),
    }
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is Literal:
        settings["choices"] = typing.get_args(kind)
    elif typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        settings |= {"nargs": "+", "type": kind, "metavar": METAVARS[kind]}
    else:
        settings |= {"type": kind, "metavar": METAVARS[kind]}
    group.add_argument("--" + option.name.replace("_", "-"), **settings)


def configured(args: argparse.Namespace) -> TrainingConfig:
    """The defaults, or those of the run that goes on, then the file, then the flags."""
    from ..training.config import merged, read_toml

    flags: dict[str, Any] = {AUGMENTATION: {}}
    for title, configuration in _groups().items():
        table = flags[AUGMENTATION] if title == AUGMENTATION else flags
        names = [option.name for option, _ in _options(configuration)]
        table.update({name: getattr(args, name) for name in names if hasattr(args, name)})
    earlier = Path(args.output).expanduser() / "config.toml"
    kept = read_toml(earlier) if args.resume and not args.config and earlier.is_file() else {}
    return merged(kept, read_toml(args.config) if args.config else {}, flags)


def _run(args: argparse.Namespace) -> int:
    config = configured(args)

    import torch

    from ..training.run import train

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    with closing(_ProgressBar()) as bar:
        try:
            result = train(
                config,
                args.output,
                device=args.device,
                cache=args.cache,
                resume=args.resume,
                strict=args.strict,
                tensorboard=args.tensorboard,
                progress=bar.show,
                notify=bar.say,
            )
        except KeyboardInterrupt:
            bar.say(f"stopped; --resume -o {args.output} goes on from the last checkpoint")
            raise
    if os.environ.get("RANK", "0") != "0":
        return DONE
    if args.json:
        report = {**vars(result), "model": os.fspath(result.model)}
        print(json.dumps(report, indent=2))
    else:
        best = f", {result.best_score_db:.2f} dB on the validation songs at step {result.best_step}"
        print(f"{result.model}{best if result.best_step >= 0 else ''}")
    return DONE


class _ProgressBar(ProgressBar):
    """A bar for each thing that is counted."""

    counted = ""

    def show(self, counted: str, done: int, total: int, said: str) -> None:
        if self.bar is None or counted != self.counted:
            self.counted = counted
            self.begin(total=total, initial=done - 1, desc=counted, unit="")
        self.bar.set_postfix_str(said, refresh=False)
        self.reach(done)

    def say(self, text: str) -> None:
        super().say(f"pyunetsep: {text}")
