"""What every benchmark shares: a machine that is described, results that are data. The timing is the package's own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from pyunetsep import __version__
from pyunetsep.benchmark import cpu_name
from pyunetsep.ops import build_info

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def all_threads() -> int:
    """As many as there are processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def answer(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def gpu_facts() -> dict[str, str]:
    """The card as its driver describes it: asked right after the work, so the clocks are those of work."""
    names = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    values = answer("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0").split(", ")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


SAME = ("pyunetsep", "torch", "python", "build", "cpu", "threads", "gpu", "cuda")  # where results can be compared


def context() -> dict[str, Any]:
    """The machine, the versions and the commit that results hold for."""
    return {
        "pyunetsep": __version__,
        "commit": os.environ.get("COMMIT") or answer("git", "describe", "--always", "--dirty"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": build_info(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "driver": gpu_facts() if torch.cuda.is_available() else {},
        "date": time.strftime("%Y-%m-%d"),
    }


def place(name: str, *, dry_run: bool) -> Path:
    """A lent machine gives back what lies in $OUT; what a dry run makes must not get among the results."""
    default = HERE.parent / "build" / "dry-run" if dry_run else RESULTS
    return Path(os.environ.get("OUT") or default) / f"{name}.json"


def saved(name: str, *, dry_run: bool = False) -> Any | None:
    """Earlier results, if there are any, of this machine and these versions."""
    path = place(name, dry_run=dry_run)
    if not path.exists():
        return None
    earlier, now = json.loads(path.read_text()), context()
    return earlier["results"] if all(earlier["context"].get(key) == now[key] for key in SAME) else None


def save(name: str, results: Any) -> Path:
    """Writes results/<name>.json, with their context."""
    path = place(name, dry_run=bool(results.get("dry_run")))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"context": context(), "results": results}, indent=2) + "\n")
    return path
