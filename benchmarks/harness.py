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

RESULTS = Path(__file__).parent / "results"


def all_threads() -> int:
    """As many as there are processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def save(name: str, results: Any) -> Path:
    """Writes results/<name>.json, with the machine, the versions and the commit they hold for."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    context = {
        "pyunetsep": __version__,
        "commit": commit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": build_info(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"context": context, "results": results}, indent=2) + "\n")
    return path
