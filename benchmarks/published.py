"""What `readme.py` and `plot.py` read: results as they were saved, and how they name what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GPU_WAYS = ("on the GPU", "public call", "array", "files")  # of a whole song
OURS, SPLEETER, EXACT = "pyunetsep", "Spleeter on TensorFlow", ", exact"
TITLES = {
    "torch": "PyTorch",
    "torch channels_last": "PyTorch, channels last",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jansson2017": "the paper's network",
    "spleeter": "Spleeter's network",
}


def title(name: str) -> str:
    return TITLES.get(name, name)


def load(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def load_if_measured(name: str) -> Any | None:
    """None where nothing was measured yet."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return load(name) if path.exists() else None


def load_gpu(name: str) -> Any | None:
    """None where nothing was measured on a GPU."""
    data = load_if_measured(name)
    return None if data is None or data["results"]["dry_run"] else data


def by_mode(runs: dict[str, Any], *, exact: bool) -> dict[str, Any]:
    """The whole-song runs of one mode, named by their engines; Spleeter itself counts as exact."""
    return {
        name.removesuffix(EXACT): run
        for name, run in runs.items()
        if (name.endswith(EXACT) or name == SPLEETER) == exact and " kHz" not in name
    }


def fastest(runs: dict[str, Any], *but: str) -> str | None:
    """The engine with the least median, of those that are not ours nor named."""
    names = [name for name in runs if name not in (OURS, *but)]
    return min(names, key=lambda name: runs[name]["median_s"], default=None)


def seconds(value: float) -> str:
    """A time with three digits."""
    if value < 1e-3:
        return f"{1e6 * value:.3g} µs"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def patches(number: int) -> str:
    return "1 patch" if number == 1 else f"{number} patches"


def a(name: str) -> str:
    return f"an {name}" if name[:1] in "AEIOU" else f"a {name}"
