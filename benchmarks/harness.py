"""What every benchmark shares: rivals that alternate, a machine that is described, results that are data."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyunetsep import __version__
from pyunetsep.ops import build_info

RESULTS = Path(__file__).parent / "results"


def alternate(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Runs every rival once to warm up, then all of them in turn, `rounds` times; seconds: median and extremes."""
    for run in rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {
        name: {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
        for name, seconds in times.items()
    }


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
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": time.strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"context": context, "results": results}, indent=2) + "\n")
    return path


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
