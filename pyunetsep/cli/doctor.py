"""`pyunetsep doctor`: what runs where on this machine, and why."""

from __future__ import annotations

import argparse
import json
import platform
import sys

EXAMPLES = """examples:
  pyunetsep doctor
  pyunetsep doctor --json | python -m json.tool
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="show which device, kernels and libraries are used here, and why",
        description="Shows which device, kernels and libraries pyunetsep uses on this machine, and why. "
        "Put its output into a bug report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts = examine()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            print(f"{name:12s} {value}")
    return 0


def examine() -> dict[str, str]:
    """Each fact as one line of text."""
    import numpy
    import soundfile
    import soxr
    import torch

    from .. import __version__, models
    from ..device import choose_device, cuda_obstacle
    from ..ops import kernels

    build = kernels.build_info()
    obstacle = cuda_obstacle()
    device = choose_device("auto")
    cached = [name for name in models.REGISTRY if models.cached_path(name).exists()]
    try:
        import av

        pyav = f"PyAV {av.__version__}: m4a, mp4 and more can be read"
    except ImportError:
        pyav = "no PyAV: m4a and mp4 cannot be read (pip install 'pyunetsep[av]')"
    return {
        "pyunetsep": f"{__version__}, Python {platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, NumPy {numpy.__version__}",
        "device": f"{device}"
        + (f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "")
        + (f": {obstacle}" if obstacle else ""),
        "kernels": ("on" if kernels.kernels_enabled() else "off (PYUNETSEP_KERNELS=0): plain PyTorch instead")
        + f"; built by {build['compiler']} against torch {build['torch']}",
        "cuda kernels": f"built with CUDA {build['cuda_toolkit']} for {build['cuda_architectures']}"
        if build["cuda"]
        else "not built: no nvcc was found, or PYUNETSEP_CUDA=OFF, when pyunetsep was installed",
        "simd": f"{torch.backends.cpu.get_cpu_capability()} (of this CPU; used by torch)",
        "audio": f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}; {pyav}",
        "models": f"{', '.join(cached) or 'none'} in {models.cache_dir()}",
        "command": sys.argv[0],
    }
