"""`pyunetsep export`: networks for other programs, as ONNX."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from .exit_codes import DONE

if TYPE_CHECKING:
    from ..export import ExportedNetwork

PRECISIONS = ("float32", "float16")

EXAMPLES = """examples:
  pyunetsep export jansson2017 --onnx networks
      writes networks/vocals.onnx and networks/accompaniment.onnx
  pyunetsep export spleeter-2stems --stem vocals --onnx vocals.onnx --precision float16
      half the size, for a GPU; magnitudes and masks stay float32

Only the network is exported: a magnitude spectrogram in, a soft mask out, [batch, channels, bins, frames], with batch
and frames free, frames a multiple of the metadata's frames_multiple. The metadata also says how to make the
spectrogram, normalise magnitudes and turn masks into stems; examples/onnx_separate.py does that with NumPy and ONNX
Runtime. If ONNX Runtime is installed (pip install onnxruntime), each file is run next to PyTorch before it gets its
name.

exit codes: 0 done, 1 a file cannot be written, 2 usage, 3 no such model, or onnx and onnxscript are missing
(pip install 'pyunetsep[onnx]')
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a model's networks as ONNX",
        description="Writes a model's networks as ONNX files, and checks them.",
        epilog=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="name, .safetensors file or folder")
    parser.add_argument(
        "--onnx", required=True, metavar="PATH", help="a file that ends in .onnx, for one stem, or a folder"
    )
    parser.add_argument(
        "-s", "--stem", action="append", metavar="STEM", help="export only this stem (may be given again; default: all)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of weights and arithmetic (default: float32)"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators, 18 or later (default: 18)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--offline", action="store_true", help="never download a model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..export import OPSET, export_onnx

    exported = export_onnx(
        args.model,
        args.onnx,
        stem=args.stem,
        precision=args.precision,
        opset=OPSET if args.opset is None else args.opset,
        overwrite=args.overwrite,
        offline=args.offline,
    )
    if args.json:
        rows = [{**dataclasses.asdict(network), "path": str(network.path)} for network in exported]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for network in exported:
            print(_line(network))
    return DONE


def _line(network: ExportedNetwork) -> str:
    what = f"{network.path}: {network.precision}, opset {network.opset}"
    found = network.agreement
    if found is None:
        return f"{what}; not run next to PyTorch, for which `pip install onnxruntime`"
    difference = f"{what}; {found.runtime} differs from PyTorch in float32 by at most {found.largest_difference:.1e}"
    return difference if found.error_db is None else f"{difference}, an error in the stem of {found.error_db:.0f} dB"
