"""How fast are the networks on the CPU, next to the other engines and to what the processor could do?

    python benchmarks/unet_cpu.py [--models jansson2017 spleeter] [--patches 1 20] [--threads 1 2] [--seconds 20]

All engines that are installed take turns in one process, on the same random network, after each has proved to compute
the same masks; `pip install '.[rivals]'` installs the others. FLOP are those of the convolutions as defined, whatever
an engine makes of them; the peak is that of multiply-adds in registers, on as many threads.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from engines import Compiled, Engine, Torch, exported, missing
from harness import all_threads, save
from torch import Tensor

from pyunetsep import PRESETS
from pyunetsep.benchmark import alternate, fma_peak, layer_flop, random_network, threads
from pyunetsep.config import ModelConfig
from pyunetsep.unet import UNet
from pyunetsep.unet_plan import UNetPlan

OURS = "pyunetsep"
ENGINES = (OURS, "torch", "torch channels_last", "torch.compile", "onnxruntime", "openvino")
TOLERANCE = 1e-4  # of a mask between 0 and 1
LEAST_ROUNDS, LAYER_ROUNDS = 5, 5


def make(name: str, network: UNet, shape: tuple[int, ...], thread_count: int) -> Engine:
    if name == OURS:
        batch, _, bins, frames = shape
        return UNetPlan(network, bins=bins, frames=frames, batch=batch)
    if name == "torch.compile":
        return Compiled(network)
    if name.startswith("torch"):
        return Torch(network, channels_last=name.endswith("channels_last"))
    return exported(name, network, shape, thread_count)


def fed(engine: Engine, magnitude: Tensor) -> Callable[[], Tensor]:
    """The engine, with the magnitudes in the layout that it is fastest with; those that can write to the same place."""
    if isinstance(engine, UNetPlan):
        prepared = magnitude.mT.contiguous().mT
        mask = torch.empty_like(prepared)
        return lambda: engine.estimate(prepared, out=mask)
    prepared = engine.prepare(magnitude) if isinstance(engine, Torch) else magnitude
    return lambda: engine(prepared)


def torch_layers(network: Torch, magnitude: Tensor) -> dict[str, float]:
    """Seconds of each block in one eager run; joining with the skips and the last sigmoid are not in them."""
    unet, times, started = network.network, {}, {}
    names = {block: f"encoder {i}" for i, block in enumerate(unet.encoder, start=1)}
    names |= {block: f"decoder {i}" for i, block in enumerate(unet.decoder, start=1)}
    if unet.config.head == "dilated":
        names[unet.head] = "head 1"

    def before(block: torch.nn.Module, _: object) -> None:
        started[block] = time.perf_counter()

    def after(block: torch.nn.Module, *_: object) -> None:
        times[names[block]] = time.perf_counter() - started[block]

    handles = [block.register_forward_pre_hook(before) for block in names]
    handles += [block.register_forward_hook(after) for block in names]
    network(magnitude)
    for handle in handles:
        handle.remove()
    return times


def layers(plan: UNetPlan, eager: Torch, magnitude: Tensor, flop: dict[str, int], peak: float) -> dict[str, Any]:
    """Medians of each layer, the plan's and PyTorch's turn by turn."""
    ours, theirs = [], []
    for_plan, for_eager = magnitude.mT.contiguous().mT, eager.prepare(magnitude)
    for _ in range(LAYER_ROUNDS):
        ours.append(plan.profile(for_plan))
        theirs.append(torch_layers(eager, for_eager))
    rows = {}
    for name, each in flop.items():
        work = each * len(magnitude)
        median, torch_median = (statistics.median(run[name] for run in runs) for runs in (ours, theirs))
        rows[name] = {
            "gflop": work / 1e9,
            "median_s": median,
            "gflops": work / median / 1e9,
            "share_of_peak": work / median / peak,
            "torch_median_s": torch_median,
            "torch_gflops": work / torch_median / 1e9,
            "times_torch": torch_median / median,
        }
    return rows


def measure(model: ModelConfig, batch: int, thread_count: int, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """One network, number of patches and of threads."""
    shape = (batch, model.unet.input_channels, model.spectrogram.bins, model.patch_frames)
    network = random_network(model.unet)
    magnitude = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        truth = network(magnitude)
    engines: dict[str, Engine] = {}
    runs: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name in args.engines:
        if missing(name):
            continue
        try:
            engines[name] = make(name, network, shape, thread_count)
            runs[name] = fed(engines[name], magnitude)
            errors[name] = float((runs[name]() - truth).abs().max())
        except Exception as problem:  # whatever another engine comes up with: the others go on without it
            if name == OURS:
                raise
            failed[name] = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
            print(f"  {name}: left out: {failed[name]}")
            runs.pop(name, None)
            continue
        if errors[name] > TOLERANCE:
            raise SystemExit(f"{name}: its masks are {errors[name]:.1e} off, more than {TOLERANCE:.0e}")

    flop = layer_flop(model.unet, model.spectrogram.bins, model.patch_frames)
    work = batch * sum(flop.values())
    timings: dict[str, Any] = alternate(runs, rounds=args.rounds, seconds=args.seconds, least=args.least)
    for name, timing in timings.items():
        timing["gflops"] = work / timing["median_s"] / 1e9
        timing["share_of_peak"] = timing["gflops"] * 1e9 / peak
        timing["largest_error"] = errors[name]
        print(
            f"  {name:20s} {1e3 * timing['median_s']:9.2f} ms ({1e3 * timing['min_s']:.2f} to "
            f"{1e3 * timing['max_s']:.2f}) {timing['gflops']:8.1f} GFLOP/s, {timing['share_of_peak']:.0%} of the peak"
        )
    result: dict[str, Any] = {"gflop": work / 1e9, "engines": timings, "failed": failed}
    peers = [name for name in timings if name != OURS]
    plan, eager = engines.get(OURS), engines.get("torch channels_last")
    if isinstance(plan, UNetPlan):
        result["packed_mib"] = plan.packed_bytes / 2**20
        if peers:
            fastest = min(peers, key=lambda name: timings[name]["median_s"])
            result["fastest_peer"] = fastest
            result["times_fastest_peer"] = timings[fastest]["median_s"] / timings[OURS]["median_s"]
        if isinstance(eager, Torch):
            result["layers"] = layers(plan, eager, magnitude, flop, peak)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--patches", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, all_threads()}))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="for each network and number of patches and threads"
    )
    parser.add_argument("--rounds", type=int, default=100, help="at most so many of them in that time")
    parser.add_argument("--least", type=int, default=LEAST_ROUNDS, help="at least so many, however long it takes")
    args = parser.parse_args()

    skipped = {name: f"not installed: {', '.join(missing(name))}" for name in args.engines if missing(name)}
    for name, why in skipped.items():
        print(f"{name}: {why}")
    peaks, results = {}, []
    for thread_count in args.threads:
        with threads(thread_count):
            peaks[thread_count] = peak = fma_peak(1.0)
            print(f"{thread_count} threads: peak {peak / 1e9:.1f} GFLOP/s")
            for name in args.models:
                for batch in args.patches:
                    print(f" {name}, {batch} patches")
                    row = measure(PRESETS[name], batch, thread_count, args, peak)
                    results.append({"model": name, "patches": batch, "threads": thread_count, **row})
    names = ("torch", "onnxruntime", "openvino")
    versions = {name: metadata.version(name) for name in names if not missing(name)}
    summary = {
        "peak_gflops": {str(count): peak / 1e9 for count, peak in peaks.items()},
        "simd_level": UNetPlan(random_network(PRESETS["jansson2017"].unet), bins=64, frames=64).simd_level,
        "versions": {**versions, "python": platform.python_version()},
        "skipped": skipped,
        "networks": results,
    }
    print(save("unet_cpu", summary))


if __name__ == "__main__":
    main()
