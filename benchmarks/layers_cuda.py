"""What does each layer of a model's networks take on a GPU, and what would its arithmetic and its bytes alone take?

    python benchmarks/layers_cuda.py [--models jansson2017 spleeter] [--patches 1 20]

The times are those that CUPTI records of the kernels, one a layer, in the order of their launches, with cold caches.
FLOP are those of the convolutions as defined; bytes are each map, read and written once where it crosses a layer, and
the weights: what a layer takes at least on a card of gpu.py's constants is its floor. The compiled kernels' registers
and spills are those that ptxas reported.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu
import torch
from harness import HERE, save
from unet_cuda import PRECISIONS, magnitudes, networks_of

from pyunetsep.benchmark import layer_flop
from pyunetsep.config import UNetConfig
from pyunetsep.unet_plan import UNetPlan

sys.path.insert(0, str(HERE.parent))
from tests.compile_report import compile_report, demangled, latest_build

RUNS = 12
WARM_UP = 2  # of them do not count
FACTS = ("grid", "block", "registers per thread", "shared memory", "est. achieved occupancy %")


def layer_bytes(config: UNetConfig, bins: int, frames: int, batch: int, stems: int, element: int) -> dict[str, int]:
    """What each layer reads and writes, maps of `element` bytes; named as in `layer_flop`."""
    depth, inputs, taps = len(config.channels), config.input_channels, 25

    def of_map(channels: int, level: int) -> int:
        padded = -(-channels // 16) * 16
        return stems * batch * padded * (bins >> level) * (frames >> level) * element

    plane = batch * bins * frames * 4
    traffic = {}
    widths = (inputs, *config.channels)
    for i in range(1, depth + 1):
        read = inputs * plane if i == 1 else of_map(widths[i - 1], i - 1)  # all networks read the same mixture
        weights = stems * taps * widths[i - 1] * widths[i] * (4 if i == 1 else element)
        traffic[f"encoder {i}"] = read + of_map(widths[i], i) + weights
    planes = 1 if config.head == "dilated" else inputs
    for j in range(1, depth + 1):
        level = depth - j + 1
        sources = 1 if j == 1 else 2  # the skip, and what comes from below
        channels, last = widths[level], j == depth
        made = planes if last else widths[level - 1]
        written = stems * planes * plane if last else of_map(made, level - 1)
        traffic[f"decoder {j}"] = (
            sources * of_map(channels, level) + written + stems * taps * sources * channels * made * element
        )
    if config.head == "dilated":
        traffic["head 1"] = stems * (planes + inputs) * plane
    return traffic


def recorded(run: Callable[[], object], clock: gpu.Clock) -> list[dict[str, Any]]:
    """Our kernels of `RUNS` runs, as CUPTI saw them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(RUNS):
            clock(run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    ours = [event for event in events if event.get("cat") == "kernel" and "pyunetsep" in event["name"]]
    return sorted(ours, key=lambda event: event["ts"])


def layers(model: Any, batch: int, precision: str, args: Any) -> dict[str, Any]:
    bins, frames = model.spectrogram.bins, model.patch_frames
    networks, magnitude = networks_of(model, args.device), magnitudes(model, batch, args.device)
    flop = layer_flop(model.unet, bins, frames)
    stems, element = len(networks), 4 if precision == "float32" else 2
    traffic = layer_bytes(model.unet, bins, frames, batch, stems, element)
    if args.device.type == "cpu":  # times of another plan, which has the same layers
        other = UNetPlan(next(iter(networks.values())), bins=bins, frames=frames, batch=batch)
        events = [
            {"dur": 1e6 * seconds, "name": "", "args": {}} for seconds in other.profile(magnitude).values()
        ] * RUNS
    else:
        plan, clock = gpu.plan(networks, args.device, precision), gpu.Clock(args.device)
        plan.estimate(magnitude, model.stems)
        gpu.spin(args.device)
        events = recorded(lambda: plan.estimate(magnitude, model.stems), clock)
    if len(events) != RUNS * len(flop):
        raise RuntimeError(f"{len(events)} kernels were recorded, {RUNS} runs of {len(flop)} layers wanted")
    rows = {}
    for i, (name, each) in enumerate(flop.items()):
        of_layer = events[i :: len(flop)]
        median = statistics.median(event["dur"] for event in of_layer[WARM_UP:]) / 1e6
        work = each * batch * stems
        floor = gpu.roofline_s(work, traffic[name], precision)
        rows[name] = {
            "median_s": median, "flop": work, "bytes": traffic[name],
            "floor_s": floor, "share_of_roofline": floor / median,
            "tflops": work / median / 1e12, "bytes_per_s": traffic[name] / median, "kernel": of_layer[0]["name"],
            **{fact: of_layer[0]["args"][fact] for fact in FACTS if fact in of_layer[0]["args"]},
        }  # fmt: skip
    return rows


def compiled_kernels() -> list[dict[str, Any]] | str:
    """Each kernel as ptxas left it; or why that is not known."""
    try:
        report = compile_report(latest_build())
    except OSError as error:  # no build in this tree, or none of its logs
        return str(error)
    names = demangled([kernel.name for kernel in report])
    return [
        {"kernel": name, "architecture": kernel.architecture, "registers": kernel.registers,
         "stack_bytes": kernel.stack_bytes, "spill_bytes": kernel.spill_bytes}
        for kernel, name in zip(report, names, strict=True)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = gpu.parser(__doc__, seconds=1.0, rounds=1)
    options.add_argument("--patches", nargs="+", type=int, default=None)
    args = gpu.parse(options, arguments)
    args.patches = args.patches or ([2] if args.dry_run else [1, 20])
    best = gpu.ceilings(args)
    rows: list[dict[str, Any]] = []
    for name in args.models:
        model = gpu.model_of(name, args)
        for batch in args.patches:
            for precision in PRECISIONS:
                found = layers(model, batch, precision, args)
                rows.append({"model": name, "patches": batch, "precision": precision, "layers": found})
                total, floor = (sum(layer[key] for layer in found.values()) for key in ("median_s", "floor_s"))
                print(
                    f" {name}, {batch} patches, {precision}: {1e6 * total:.1f} us, {floor / total:.0%} of the roofline"
                )
                for layer, facts in found.items():
                    print(
                        f"  {layer:12s} {1e6 * facts['median_s']:9.1f} us {facts['share_of_roofline']:6.0%} "
                        f"{facts['tflops']:7.1f} TFLOP/s {facts['bytes_per_s'] / 1e9:7.0f} GB/s  "
                        f"{facts.get('registers per thread', '')} {facts.get('grid', '')}"
                    )
    kernels = compiled_kernels()
    if isinstance(kernels, list):
        local = [kernel["kernel"] for kernel in kernels if kernel["stack_bytes"] or kernel["spill_bytes"]]
        print(f" {len(kernels)} kernels were compiled, {len(local)} with local memory {' '.join(local)}")
    constants = {"peak_flops": gpu.PEAK_FLOPS, "bandwidth": gpu.BANDWIDTH, "measured": best}
    print(save("layers_cuda", {"dry_run": args.dry_run, **constants, "networks": rows, "kernels": kernels}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
