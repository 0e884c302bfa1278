"""What the benchmarks of a GPU share: rivals that alternate with cold caches, CUDA graphs, and what the card can do.

Without a GPU, or with --dry-run, a tiny model on the CPU goes the same way, so that the scripts are tested everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyunetsep.benchmark import Timing, timing
from pyunetsep.config import PRESETS, ModelConfig
from pyunetsep.cuda_plan import CudaPlan
from pyunetsep.engine import Estimator, Networks
from pyunetsep.unet import UNet

# What an H100 (SXM) was seen to do: 16-bit products of matrices, and bytes read and written by copies; float32
# multiply-adds are its nominal ones. Shares are of these; `ceilings` measures the card at hand beside them.
PEAK_FLOPS = {"float16": 800e12, "bfloat16": 800e12, "float32": 67e12}
BANDWIDTH = 3.0e12
FLUSH_BYTES = 2**28  # written before each run, so that no cache holds what it reads: an H100 has 50 MB, others less
SPIN_S = 0.3


def parser(description: str, *, seconds: float, rounds: int) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("--models", nargs="+", choices=PRESETS, default=list(PRESETS))
    options.add_argument("--seconds", type=float, default=seconds, help="for each comparison")
    options.add_argument("--rounds", type=int, default=rounds, help="at most so many of them in that time")
    options.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU: do the scripts run?")
    return options


def parse(options: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    args = options.parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        print("no GPU here: a dry run, its figures mean nothing")
        args.dry_run = True
    if args.dry_run:
        args.seconds, args.rounds = min(args.seconds, 0.1), min(args.rounds, 2)
        torch.set_num_threads(1)
    args.device = torch.device("cpu" if args.dry_run else "cuda:0")
    return args


def model_of(name: str, args: argparse.Namespace) -> ModelConfig:
    """A preset, but for a dry run one of its kind that takes milliseconds."""
    model = PRESETS[name]
    if not args.dry_run:
        return model
    scale = model.spectrogram.n_fft // 128
    return dataclasses.replace(
        model,
        spectrogram=dataclasses.replace(
            model.spectrogram,
            n_fft=128,
            hop_length=model.spectrogram.hop_length // scale,
            bins=model.spectrogram.bins // scale,
        ),
        unet=dataclasses.replace(model.unet, channels=(3, 4), dropout_blocks=1),
        patch_frames=32,
    )


def plan(networks: Mapping[str, UNet], device: torch.device, precision: str) -> Estimator:
    """The networks as a `CudaPlan`; on a CPU as they are."""
    if device.type == "cpu":
        return Networks(networks)
    return CudaPlan(networks, device=device, precision=getattr(torch, precision))


class Graphed:
    """A function of one tensor as a CUDA graph. What it is given is copied in, its result is written over each time."""

    def __init__(self, function: Callable[[Tensor], Any], example: Tensor, pool: Any = None) -> None:
        """`pool`: graphs that share it share their memory; they must not run at once."""
        self.function, self.input, self.graph = function, example.clone(), None
        if example.device.type == "cpu":
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function(self.input)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.output = function(self.input)

    def __call__(self, tensor: Tensor) -> Any:
        self.input.copy_(tensor)
        if self.graph is None:
            return self.function(self.input)
        self.graph.replay()
        return self.output


class Clock:
    """Times single calls on a device: after all caches were flushed, or as they come with `flush=False`."""

    def __init__(self, device: torch.device, *, flush: bool = True, wall: bool = False) -> None:
        """`wall`: from the call to its end as the caller sees it, instead of from event to event on the GPU."""
        self.device, self.wall = device, wall or device.type == "cpu"
        flush = flush and device.type == "cuda"
        self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if flush else None

    def __call__(self, run: Callable[[], object]) -> float:
        """Seconds. The GPU is idle when the call begins, so the time in which its first kernels are queued counts."""
        if self.flushed is not None:
            self.flushed.zero_()
        self.synchronize()
        if self.wall:
            started = time.perf_counter()
            run()
            self.synchronize()
            return time.perf_counter() - started
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def alternate(
    rivals: Mapping[str, Callable[[], object]], clock: Clock, args: argparse.Namespace, *, least: int = 3
) -> dict[str, Timing]:
    """Equally many runs of each, turn by turn, after two of each that do not count and a while of full load.

    Not `pyunetsep.benchmark.alternate`: its pauses between runs, which a CPU's threads need, let a GPU's clocks sink.
    """
    for run in [*rivals.values()] * 2:
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    spin(clock.device)
    started = time.perf_counter()
    for done in range(args.rounds):
        if done >= least and time.perf_counter() - started > args.seconds:
            break
        for name, run in rivals.items():
            times[name].append(clock(run))
    return {name: timing(values) for name, values in times.items()}


def spin(device: torch.device) -> None:
    """Brings the clocks up."""
    if device.type == "cpu":
        return
    square = torch.randn(4096, 4096, dtype=torch.float16, device=device)
    end = time.perf_counter() + SPIN_S
    while time.perf_counter() < end:
        for _ in range(10):
            square @ square
        torch.cuda.synchronize(device)


def ceilings(args: argparse.Namespace) -> dict[str, float]:
    """What this card does at best: bytes/s read and written by a copy, FLOP/s of matrix products (of random data)."""
    device, size = args.device, 64 if args.dry_run else 8192
    clock, bytes_each = Clock(device, flush=False), 2**16 if args.dry_run else 2**31
    here, there = (torch.empty(bytes_each, dtype=torch.uint8, device=device) for _ in range(2))
    runs: dict[str, tuple[float, Callable[[], object]]] = {
        "copy_bytes_per_s": (2 * bytes_each, lambda: there.copy_(here))
    }
    for dtype in (torch.float16, torch.float32):
        matrix = torch.randn(size, size, dtype=dtype, device=device)
        name = f"{str(dtype).removeprefix('torch.')}_flops"
        runs[name] = (2 * size**3, lambda matrix=matrix: matrix @ matrix)
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {}
    for name, (work, run) in runs.items():
        run()
        spin(device)
        found[name] = work / min(clock(run) for _ in range(2 if args.dry_run else 10))
        print(f"  {name:18s} {found[name] / 1e12:8.2f} T")
    return found


def roofline_s(flop: float, traffic: float, precision: str) -> float:
    """The least time for so many FLOP and bytes, on the card of the constants above."""
    return max(flop / PEAK_FLOPS[precision], traffic / BANDWIDTH)


def show(name: str, timing: Timing, rest: str = "") -> None:
    quartiles = f"({1e6 * timing['quartile_1_s']:.1f} to {1e6 * timing['quartile_3_s']:.1f})"
    print(f"  {name:42s} {1e6 * timing['median_s']:10.1f} us {quartiles:24s} {rest}", flush=True)


def left_out(rival: str, problem: Exception) -> str:
    """Says that the others go on without it, and returns why in one line."""
    reason = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    print(f"  {rival}: left out: {reason}")
    return reason
