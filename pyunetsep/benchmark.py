"""Timing for `pyunetsep bench` and the scripts in benchmarks/: rivals that alternate, and what a processor could do."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from .checkpoint import Checkpoint, ModelInfo
from .config import ModelConfig, UNetConfig
from .ops import kernels
from .unet import KERNEL_SIZE, UNet

Timing = dict[str, float]  # median, quartiles and extremes in seconds, and the number of rounds

REST_S = 0.02  # from one run to the next: threads that still wait busily for more work would take the next one's cores
BURST_S = 0.01  # of multiply-adds: long against the start of the threads, short against what disturbs them
HEAD_TAPS = 4 * 4


def alternate(
    rivals: Mapping[str, Callable[[], object]], *, rounds: int = 10**9, seconds: float = math.inf, least: int = 2
) -> dict[str, Timing]:
    """Runs every rival once to warm up, then all of them in turn: what disturbs the machine meets them all.

    Args:
        rivals: what to time. One that returns a float has timed itself, in seconds.
        rounds: at most so many.
        seconds: no new round after so many, but for the first `least`.
    """
    for run in rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= least and time.perf_counter() - started > seconds:
            break
        for name, run in rivals.items():
            time.sleep(REST_S)
            start = time.perf_counter()
            own = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return {name: timing(values) for name, values in times.items()}


def timing(seconds: list[float]) -> Timing:
    """One rival's runs in figures."""
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return {
        "median_s": statistics.median(seconds),
        "quartile_1_s": quartiles[0],
        "quartile_3_s": quartiles[2],
        "min_s": min(seconds),
        "max_s": max(seconds),
        "rounds": len(seconds),
    }


def fma_peak(seconds: float = 0.3) -> float:
    """FLOP/s of torch's threads together in multiply-adds that touch no memory: the best of many short bursts."""

    def burst(threads: int, rounds: int) -> tuple[int, float]:
        start = time.perf_counter()
        flop = kernels.multiply_adds(threads, rounds)
        return flop, time.perf_counter() - start

    rounds = 10_000
    while burst(1, rounds)[1] < BURST_S:
        rounds *= 2
    best, end = 0.0, time.perf_counter() + seconds
    while True:
        flop, took = burst(torch.get_num_threads(), rounds)
        best = max(best, flop / took)
        if time.perf_counter() >= end:
            return best


def layer_flop(config: UNetConfig, bins: int, frames: int) -> dict[str, int]:
    """Two FLOP for each multiply-add of each layer's convolution as its definition has it, for one patch.

    What a faster algorithm saves counts as done, as is usual, so shares of the peak above 1 are possible. The names are
    those of `UNetPlan.profile`.
    """
    taps, flop = KERNEL_SIZE**2, {}
    widths = (config.input_channels, *config.channels)
    for i, (inputs, outputs) in enumerate(zip(widths, config.channels, strict=False), start=1):
        flop[f"encoder {i}"] = 2 * taps * inputs * outputs * (bins >> i) * (frames >> i)
    dilated = config.head == "dilated"
    outputs_of = (*reversed(config.channels[:-1]), 1 if dilated else config.input_channels)
    inputs = config.channels[-1]
    for i, outputs in enumerate(outputs_of, start=1):
        # A transposed convolution's every input meets every tap; the other upsampling has four times as many to meet.
        level = len(outputs_of) - i + (config.upsampling == "transposed")
        flop[f"decoder {i}"] = 2 * taps * inputs * outputs * (bins >> level) * (frames >> level)
        inputs = 2 * outputs
    if dilated:
        flop["head 1"] = 2 * HEAD_TAPS * config.input_channels * bins * frames
    return flop


def random_network(config: UNetConfig, seed: int = 0) -> UNet:
    """A network with random weights and statistics: speed does not depend on what they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(config)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return network.eval().requires_grad_(False)


def random_checkpoint(model: ModelConfig) -> Checkpoint:
    """A model with a random network a stem."""
    info = ModelInfo(name="random", licence="none", training_data="none", source="random weights", source_sha256="")
    networks = {stem: random_network(model.unet, seed) for seed, stem in enumerate(model.stems)}
    return Checkpoint(model, info, networks)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for torch and the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """With the kernels or in plain PyTorch, whatever the environment says."""
    before = os.environ.get("PYUNETSEP_KERNELS")
    os.environ["PYUNETSEP_KERNELS"] = "1" if enabled else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYUNETSEP_KERNELS"]
        else:
            os.environ["PYUNETSEP_KERNELS"] = before


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
