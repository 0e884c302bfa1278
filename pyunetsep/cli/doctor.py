"""`pyunetsep doctor`: what runs where on this machine, and why."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys

from .exit_codes import DONE, MODEL_OR_DEVICE

EXAMPLES = """examples:
  pyunetsep doctor
  pyunetsep doctor --json | python -m json.tool

exit codes: 0 all well, 3 something is broken: the line says what
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="show which device, kernels and libraries are used here, and why",
        description="Shows which device, kernels and libraries pyunetsep uses on this machine, and why. "
        "Put its output into a bug report.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts, code = {}, DONE
    for name, fact in FACTS.items():
        try:
            facts[name] = fact()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            facts[name], code = f"broken: {error}", MODEL_OR_DEVICE
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            print(f"{name:12s} {value}")
    return code


def _pyunetsep() -> str:
    from .. import __version__

    return f"{__version__}, Python {platform.python_version()} on {platform.platform()}"


def _torch() -> str:
    import numpy
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads, NumPy {numpy.__version__}"


def _device() -> str:
    import torch

    from ..device import choose_device, cuda_obstacle

    device, obstacle = choose_device("auto"), cuda_obstacle()
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{name}" + (f": {obstacle}" if obstacle else "")


def _kernels() -> str:
    from ..ops import kernels

    state = "on" if kernels.kernels_enabled() else "off (PYUNETSEP_KERNELS=0): plain PyTorch instead"
    build = kernels.build_info()
    return f"{state}; built by {build['compiler']} against torch {build['torch']}"


def _cuda_kernels() -> str:
    from ..ops import kernels

    build = kernels.build_info()
    if not build["cuda"]:
        return "not built: no nvcc was found, or PYUNETSEP_CUDA=OFF, when pyunetsep was installed"
    precision = "networks run in float16, with --exact in float32, or as --precision says"
    return f"built with CUDA {build['cuda_toolkit']} for {build['cuda_architectures']}; {precision}"


def _simd() -> str:
    import torch

    from ..ops import kernels

    forced = os.environ.get("PYUNETSEP_SIMD", "auto") != "auto"
    why = "as PYUNETSEP_SIMD says" if forced else "the widest"
    training = "float32 and bfloat16 (AMX)" if kernels.has_matrix_products() else "float32"
    return (
        f"{kernels.simd_level()}, {why} of {', '.join(kernels.simd_levels())}, which are built and run here; "
        f"training in {training}; torch uses {torch.backends.cpu.get_cpu_capability()}"
    )


def _audio() -> str:
    import soundfile
    import soxr

    try:
        import av

        pyav = f"PyAV {av.__version__}: m4a, mp4 and more can be read"
    except ImportError:
        pyav = "no PyAV: m4a and mp4 cannot be read (pip install 'pyunetsep[av]')"
    return f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}; {pyav}"


def _models() -> str:
    from .. import models

    cached = [name for name in models.REGISTRY if models.cached_path(name).exists()]
    return f"{', '.join(cached) or 'none'} in {models.cache_dir()}"


FACTS = {  # each is one line of text
    "pyunetsep": _pyunetsep,
    "torch": _torch,
    "device": _device,
    "kernels": _kernels,
    "cuda kernels": _cuda_kernels,
    "simd": _simd,
    "audio": _audio,
    "models": _models,
    "command": lambda: sys.argv[0],
}
