"""How long does a step of training take, and how much memory, next to PyTorch and to what the machine could do?

    python benchmarks/training_step.py [--presets jansson2017 spleeter] [--batches 8 16 64] [--seconds 60] [--threads 2]

A step is all of it: examples are drawn and augmented, transformed, and pushed forward and back through both stems'
networks; the optimiser and the average of the weights follow. The rivals are the same by PyTorch's own means:
torch.stft, nn.Dropout and Adam on the same waves, as one would write it first (float32, default layout), and as one
would make it faster: channels last and a fused optimiser, then autocast, then compiled. Ours is in bfloat16 too on CPUs
that multiply matrices of it, and PyTorch on those that have instructions for it. On a GPU each rival is also a CUDA
graph: the step from the magnitudes on, or torch.compile's "reduce-overhead". All take turns in one process. Memory is
the peak above what was there before, on a CPU that of a process of its own; whom it does not suffice for is left out.
The share of the peak counts the multiply-adds of the convolutions and their gradients as they are defined, against
those of products of matrices of the same precision, for float32 on a CPU against multiply-adds in registers.

Results are saved after each preset and batch, among those of other calls on this machine with these versions; on a GPU
in training_step_cuda.json. There compiling takes minutes, so compiled rivals join in a second pass, until its time is
up; and --dry-run goes the same way on a CPU, with tiny networks.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gpu
import numpy as np
import torch
from harness import all_threads, context, save, saved
from torch import Tensor, nn

from pyunetsep.benchmark import alternate, fma_peak, layer_flop, use_kernels
from pyunetsep.config import PRESETS, ModelConfig
from pyunetsep.data import STEMS, Recording, Track
from pyunetsep.ops import has_matrix_products
from pyunetsep.training.config import TrainingConfig
from pyunetsep.training.examples import Examples
from pyunetsep.training.trainer import DTYPES, Trainer
from pyunetsep.unet import UNet

OURS, EAGER, COMPILED = "pyunetsep", "eager PyTorch", "compiled PyTorch"
SONG_S = 60.0
MEMORY_STEPS = 2  # in the second, the optimiser's moments are there from the beginning
PATIENCE_S = 600.0  # for the process whose memory is looked at
USABLE = 0.9  # of the memory that is free


@dataclass(frozen=True)
class Means:
    """How a rival makes its step."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    ours: bool = False
    fast: bool = False  # channels last, a fused optimiser
    compiled: bool = False
    graph: bool = False


# Others emulate it: on them a step takes a minute.
HAS_BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

ON_CPU = {
    OURS: Means(ours=True),
    **({f"{OURS}, bfloat16": Means("bfloat16", ours=True)} if has_matrix_products() else {}),
    EAGER: Means(),
    f"{EAGER}, channels last": Means(fast=True),
    f"{EAGER}, bfloat16": Means("bfloat16", fast=True),
    COMPILED: Means(fast=True, compiled=True),
    f"{COMPILED}, bfloat16": Means("bfloat16", fast=True, compiled=True),
}
ON_GPU = {
    OURS: Means(ours=True),
    f"{OURS}, bfloat16": Means("bfloat16", ours=True),
    f"{OURS}, float16": Means("float16", ours=True),
    **ON_CPU,
    f"{EAGER}, float16": Means("float16", fast=True),
    f"{COMPILED}, float16": Means("float16", fast=True, compiled=True),
}
ON_GPU |= {f"{name}, graph": dataclasses.replace(means, graph=True) for name, means in ON_GPU.items() if not means.ours}


class TinyConfig(TrainingConfig):
    """Of a step that takes milliseconds."""

    @property
    def model(self) -> ModelConfig:
        return gpu.model_of(self.preset, argparse.Namespace(dry_run=True))


def step_flop(config: TrainingConfig) -> int:
    """Of all networks' convolutions; see `layer_flop`.

    A gradient, of the data or of the weights, takes as many as the convolution itself; nobody wants that of the input.
    """
    model = config.model
    flop = layer_flop(model.unet, model.spectrogram.bins, model.patch_frames)
    return config.batch * len(model.stems) * (3 * sum(flop.values()) - flop["encoder 1"])


def recordings(config: TrainingConfig, songs: int = 4) -> list[Recording]:
    """Noise, as long as songs: what is in it makes no difference to the time."""
    rng = np.random.default_rng(0)
    rate_hz, channels = config.model.spectrogram.sample_rate_hz, config.model.unet.input_channels
    made = []
    for i in range(songs):
        waves = {s: rng.normal(0, 0.1, (channels, round(SONG_S * rate_hz))).astype(np.float16) for s in STEMS}
        made.append(
            Recording(track=Track(name=f"noise{i}", sources={}, kind="song"), waves=waves, sample_rate_hz=rate_hz)
        )
    return made


class Torch:
    """What one would write with PyTorch alone."""

    def __init__(self, config: TrainingConfig, examples: Examples, means: Means, dry_run: bool, pool: Any) -> None:
        """`pool` is the memory of CUDA graphs, as `gpu.Graphed` has it."""
        self.config, self.examples, self.device = config, examples, examples.device
        self.dtype = DTYPES[means.precision]
        self.layout = torch.channels_last if means.fast else torch.contiguous_format
        self.networks = {
            stem: UNet(config.model.unet).to(self.device, memory_format=self.layout).train() for stem in STEMS
        }
        for network in self.networks.values():
            for block in network.decoder_blocks:
                block.dropout = nn.Dropout(block.dropout.probability)
        self.averages = {stem: copy.deepcopy(network) for stem, network in self.networks.items()}
        how: dict[str, Any] = {"backend": "eager"} if dry_run else {"mode": "reduce-overhead"} if means.graph else {}
        self.trained = {
            stem: torch.compile(network, dynamic=False, **how) if means.compiled else network
            for stem, network in self.networks.items()
        }
        captured = means.graph and not means.compiled
        parameters = [p for network in self.networks.values() for p in network.parameters()]
        capturable = captured and self.device.type == "cuda"
        self.optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, fused=means.fast, capturable=capturable)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=means.precision == "float16")
        self.window = torch.hann_window(config.model.spectrogram.n_fft, device=self.device)
        self.done = 0
        self.run = gpu.Graphed(self.update, self.magnitudes(), pool) if captured else self.update

    def step(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        losses = self.run(self.magnitudes())
        losses.tolist()  # waits for it
        self.done += 1

    def magnitudes(self) -> Tensor:
        """Of the mixture and of the stems: [1 + stems, batch, channels, bins, frames]."""
        spectrogram = self.config.model.spectrogram
        draws = [self.examples.sampler.draw(self.done, index) for index in range(self.config.batch)]
        spectra = []
        for stem in STEMS:
            waves = self.examples._waves(draws, stem)
            spectrum = torch.stft(
                waves.flatten(0, 1), spectrogram.n_fft, spectrogram.hop_length, window=self.window, center=False,
                return_complex=True,
            )  # fmt: skip
            band = spectrum[:, spectrogram.first_bin : spectrogram.first_bin + spectrogram.bins]
            spectra.append(band.unflatten(0, waves.shape[:2]))
        magnitudes = torch.stack([spectrum.abs() for spectrum in (spectra[0] + spectra[1], *spectra)])
        if self.config.model.normalisation != "none":
            magnitudes /= magnitudes[0].amax((1, 2, 3), keepdim=True)
        return magnitudes

    def update(self, magnitudes: Tensor) -> Tensor:
        """From magnitudes to new weights; the losses."""
        mixture = magnitudes[0].contiguous(memory_format=self.layout)
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with use_kernels(False), autocast:
            masks = [network(mixture) for network in self.trained.values()]
        estimates = [mask.float() * mixture for mask in masks]
        losses = torch.stack([(mine - true).abs().mean() for mine, true in zip(estimates, magnitudes[1:], strict=True)])
        self.scaler.scale(losses.sum()).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        with torch.no_grad():
            for stem, network in self.networks.items():
                mine, theirs = list(self.averages[stem].parameters()), list(network.parameters())
                torch._foreach_lerp_(mine, theirs, 1 - self.config.average_decay)
        return losses.detach()


def make(
    name: str, config: TrainingConfig, examples: Examples, *, dry_run: bool = False, pool: Any = None
) -> Callable[[], object]:
    """A step of one rival. float16 is a GPU's: a dry run has bfloat16 instead."""
    means = ON_GPU[name]
    if dry_run and means.precision == "float16":
        means = dataclasses.replace(means, precision="bfloat16")
    if means.ours:
        config = dataclasses.replace(config, precision=means.precision)
        trainer = Trainer(config, examples, device=examples.device)
        return lambda: trainer.step().losses.tolist()  # waits for it
    return Torch(config, examples, means, dry_run, pool).step


def resident_mib(field: str) -> float:
    """VmRSS, what this process takes, or VmHWM, what it ever took."""
    return mib_in("/proc/self/status", field)


def freed() -> None:
    """Gives back what nobody uses: rivals refer to themselves, so they do not go by themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def usable_mib() -> float:
    freed()
    return USABLE * mib_in("/proc/meminfo", "MemAvailable")


def mib_in(file: str, field: str) -> float:
    """What Linux says in a line of this file."""
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(field)) / 1024


def memory_of(name: str, config: TrainingConfig) -> dict[str, float]:
    """What a process of its own takes for some steps: at its peak, and from one to the next.

    Raises:
        RuntimeError, TimeoutError: it did not get there.
    """
    command = [sys.executable, __file__, "--memory-of", name, "--presets", config.preset, "--batches"]
    command += [str(config.batch), "--threads", str(torch.get_num_threads()), "--device", "cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{MEMORY_STEPS} steps take more than {PATIENCE_S:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise RuntimeError(f"its process ended with {done.returncode}, and said: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(name: str, config: TrainingConfig) -> None:
    """In that process, which fails before it takes what others need."""
    limit = round(usable_mib() * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = resident_mib("VmRSS")
    step = make(name, config, Examples(recordings(config), config, torch.device("cpu")))
    for _ in range(MEMORY_STEPS):
        step()
    print(json.dumps({"peak": resident_mib("VmHWM") - before, "between": resident_mib("VmRSS") - before}))


def without_room(memory: Mapping[str, Mapping[str, float]], usable: float) -> dict[str, str]:
    """Whom to leave out, and why: all have what they keep between steps, and one at a time its peak."""
    staying, reasons = dict(memory), {}
    while staying:
        kept = sum(each["between"] for each in staying.values())
        needed = kept + max(each["peak"] - each["between"] for each in staying.values())
        if needed <= usable:
            break
        largest = max(staying, key=lambda name: staying[name]["peak"])
        peak = staying.pop(largest)["peak"]
        reasons[largest] = f"takes {peak:.0f} MiB, {needed:.0f} with the others; {usable:.0f} are there"
    return reasons


Measured = tuple[dict[str, Any], dict[str, str]]  # timings with their memory, and why others were left out


def on_cpu(config: TrainingConfig, names: Sequence[str], args: argparse.Namespace) -> Measured:
    memory: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            memory[name] = memory_of(name, config)
        except (RuntimeError, TimeoutError) as problem:
            left_out[name] = gpu.left_out(name, problem)
    for name, reason in without_room(memory, usable_mib()).items():
        left_out[name] = gpu.left_out(name, MemoryError(reason))
    examples = Examples(recordings(config), config, args.device)
    runs = {name: make(name, config, examples) for name in memory if name not in left_out}
    timings: dict[str, Any] = alternate(runs, rounds=args.rounds, seconds=args.seconds, least=args.least)
    return {name: {**timing, "memory_mib": memory[name]["peak"]} for name, timing in timings.items()}, left_out


def on_gpu(config: TrainingConfig, names: Sequence[str], args: argparse.Namespace) -> Measured:
    """Also a dry run's way, without memory."""
    cuda = args.device.type == "cuda"
    pool = torch.cuda.graph_pool_handle() if cuda else None
    examples = Examples(recordings(config), config, args.device)
    runs: dict[str, Callable[[], object]] = {}
    memory: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name in names:
        before = torch.cuda.memory_allocated(args.device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(args.device)
        try:
            runs[name] = make(name, config, examples, dry_run=args.dry_run, pool=pool)
            for _ in range(MEMORY_STEPS):
                runs[name]()
        except Exception as problem:  # whatever it comes up with: the others go on without it
            left_out[name] = gpu.left_out(name, problem)
            runs.pop(name, None)
        memory[name] = (torch.cuda.max_memory_allocated(args.device) - before) / 2**20 if cuda else 0.0
        freed()
    clock = gpu.Clock(args.device, flush=False, wall=True)
    timings: dict[str, Any] = {}
    while runs and not timings:
        try:
            timings = gpu.alternate(runs, clock, args, least=args.least)
        except torch.OutOfMemoryError as problem:  # graphs keep their memory, which the others would share
            graphs = [name for name in runs if ON_GPU[name].graph]
            if not graphs:
                raise
            for name in graphs:
                left_out[name] = gpu.left_out(name, problem)
                del runs[name]
            freed()
    return {name: {**timing, "memory_mib": memory[name]} for name, timing in timings.items()}, left_out


def matrix_peak(dtype: torch.dtype, size: int = 2048, rounds: int = 10) -> float:
    """What PyTorch's products of square matrices do at best, in FLOP/s."""
    a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)


def peak_flops(args: argparse.Namespace, names: Sequence[str]) -> dict[str, float]:
    """What the machine does at best in each precision, in FLOP/s; on a CPU in those that are wanted."""
    if args.device.type == "cpu" and not args.dry_run:
        peaks = {"float32": fma_peak(1.0)}
        wanted = any(ON_CPU[name].precision == "bfloat16" for name in names)
        return {**peaks, "bfloat16": matrix_peak(torch.bfloat16)} if wanted else peaks
    best = gpu.ceilings(args)
    return {precision: best["float32_flops" if precision == "float32" else "float16_flops"] for precision in DTYPES}


def measure(
    config: TrainingConfig, names: Sequence[str], peaks: Mapping[str, float], args: argparse.Namespace
) -> dict[str, Any]:
    """One cell of the matrix."""
    plain = args.device.type == "cpu" and not args.dry_run
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):  # of the one function that all compiled rivals share
        steps, left_out = (on_cpu if plain else on_gpu)(config, names, args)
    flop = step_flop(config)
    for name, row in steps.items():
        row["precision"] = ON_GPU[name].precision
        row["share_of_peak"] = flop / row["median_s"] / peaks[row["precision"]]
        ratio = f"{row['median_s'] / steps[OURS]['median_s']:5.2f}" if OURS in steps else ""
        print(f"  {name:34s} {row['median_s'] * 1e3:9.1f} ms {ratio} {row['share_of_peak']:5.0%} of the peak "
              f"{row['memory_mib']:7.0f} MiB", flush=True)  # fmt: skip
    return {
        "preset": config.preset, "batch": config.batch, "gflop": flop / 1e9,
        "peak_gflops": {precision: peak / 1e9 for precision, peak in peaks.items()},
        "commit": context()["commit"], "steps": steps, "not_measured": left_out,
    }  # fmt: skip


def with_cell(cells: Sequence[dict[str, Any]], cell: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells with this one in place of the one like it, in order."""

    def place(each: dict[str, Any]) -> tuple[int, int]:
        return list(PRESETS).index(each["preset"]), each["batch"]

    return sorted([*(each for each in cells if place(each) != place(cell)), cell], key=place)


def compile_too(arguments: Sequence[str], seconds: float) -> None:
    """The second pass, in a process that can be stopped whatever it does."""
    freed()
    command = [sys.executable, __file__, *arguments, "--rivals", *ON_GPU]
    try:
        subprocess.run(command, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"the compiled rivals' {seconds:.0f} s are over")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--batches", nargs="+", type=int, default=None, help="default: 8 16 64")
    parser.add_argument("--seconds", type=float, default=3.0 if cuda else 60.0, help="for each preset and batch")
    parser.add_argument("--rounds", type=int, default=100, help="at most so many of them in that time")
    parser.add_argument("--least", type=int, default=3, help="at least so many, however long it takes")
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--device", type=torch.device, default="cuda" if cuda else "cpu")
    parser.add_argument("--rivals", nargs="+", choices=ON_GPU, help="default: all")
    parser.add_argument("--end", type=float, default=70.0, help="of a GPU's second pass, in seconds after the start")
    parser.add_argument("--dry-run", action="store_true", help="tiny networks on the CPU, as on a GPU: does it run?")
    parser.add_argument("--memory-of", choices=ON_CPU, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.dry_run:
        args = gpu.parse(parser, arguments)
    on_a_gpu = args.device.type == "cuda"
    kind = TinyConfig if args.dry_run else TrainingConfig
    args.batches = args.batches or ([2] if args.dry_run else [8, 16, 64])
    configs = [kind(preset=preset, batch=batch) for batch in args.batches for preset in args.presets]
    rivals = ON_GPU if on_a_gpu or args.dry_run else ON_CPU
    usual = [name for name, means in rivals.items() if not (on_a_gpu and means.compiled)]
    if not (on_a_gpu or args.dry_run or HAS_BFLOAT16):
        usual = [name for name in usual if rivals[name].precision != "bfloat16"]
    chosen = args.rivals or usual
    if not rivals.keys() >= set(chosen):
        parser.error(f"--rivals: a CPU has {', '.join(rivals)}")
    names = [name for name, means in rivals.items() if means.ours or name in chosen]
    if args.memory_of:
        measure_memory(args.memory_of, configs[0])
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the rivals' best
    started, failed = time.monotonic(), False
    peaks, file = peak_flops(args, names), "training_step_cuda" if on_a_gpu or args.dry_run else "training_step_cpu"
    for config in configs:
        print(f" {config.preset}, {config.batch} examples", flush=True)
        cell = measure(config, names, peaks, args)
        failed |= any(name.startswith(OURS) for name in cell["not_measured"])
        earlier = saved(file, dry_run=args.dry_run) or {}
        results = {"dry_run": args.dry_run, "threads": torch.get_num_threads()}
        path = save(file, {**results, "cells": with_cell(earlier.get("cells", []), cell)})
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    if on_a_gpu and not args.rivals and seconds < args.end:
        compile_too(arguments, args.end - seconds)
    print(path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
