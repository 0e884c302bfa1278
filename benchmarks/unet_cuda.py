"""How fast are a model's networks on a GPU, next to PyTorch at its best and to what the card could do?

    python benchmarks/unet_cuda.py [--models jansson2017 spleeter] [--patches 1 20 320] [--compile-seconds 90]

Both stems' networks, random ones, in one call. The rivals: PyTorch in float32 (without TF32); float16 with norms folded
in and channels last, which is cuDNN's tensor cores; that as a CUDA graph; that through
`torch.compile(mode="max-autotune")`. All prove first that they compute the same masks, then they take turns. Compiling
takes minutes: a process of its own fills the compiler's cache until its time is up, and what is not there then is left
out. The results are saved after each comparison, so a time limit leaves those that were done.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gpu
import torch
from engines import TorchStems
from harness import save
from torch import Tensor

from pyunetsep.benchmark import layer_flop, random_network
from pyunetsep.config import ModelConfig
from pyunetsep.unet import UNet

OURS = "pyunetsep"
PRECISIONS = ("float16", "bfloat16", "float32")
EAGER, HALVES, COMPILED, GRAPH = "PyTorch float32", "cuDNN float16", "torch.compile float16", ", graph"
# Largest error of a mask between 0 and 1, against float64. In 16 bits each layer rounds its maps.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def networks_of(model: ModelConfig, device: torch.device) -> dict[str, UNet]:
    return {stem: random_network(model.unet, seed).to(device) for seed, stem in enumerate(model.stems)}


def magnitudes(model: ModelConfig, batch: int, device: torch.device) -> Tensor:
    """[batch, channels, bins, frames], the bins of a frame being neighbours, as spectra are."""
    shape = (batch, model.unet.input_channels, model.patch_frames, model.spectrogram.bins)
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(shape, generator=generator, device=device).mT


def compiled_stems(networks: Mapping[str, UNet], dry_run: bool) -> TorchStems:
    torch._dynamo.reset()  # so that its limit of versions of one function is not met
    options = {"backend": "eager"} if dry_run else {"mode": "max-autotune"}
    return TorchStems(networks, dtype=torch.float16, channels_last=True, compiled=options)


def compile_all(args: argparse.Namespace) -> None:
    """Fills the compiler's cache on disk, and prints what is in it."""
    for batch in sorted(args.patches, key=lambda patches: abs(patches - 20)):  # the most telling first
        for name in args.models:
            model = gpu.model_of(name, args)
            stems = compiled_stems(networks_of(model, args.device), args.dry_run)
            stems(stems.prepare(magnitudes(model, batch, args.device)))
            gpu.Clock(args.device).synchronize()
            print(name, batch, flush=True)


def compiled(args: argparse.Namespace) -> set[tuple[str, int]]:
    """What `compile_all` gets done in time, of models and patches."""
    asked = {(name, batch) for name in args.models for batch in args.patches}
    if args.dry_run:
        return asked
    sizes = ("--models", *args.models, "--patches", *map(str, args.patches))
    command, limit_s = [sys.executable, __file__, "--compile-only", *sizes], args.compile_seconds
    with tempfile.TemporaryFile("w+") as log:
        try:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            print(f"torch.compile: its {limit_s:.0f} s are over")
        log.seek(0)
        lines = log.read().splitlines()
    done = {(name, batch) for name, batch in asked if f"{name} {batch}" in lines}
    print("torch.compile has made", *sorted(done), sep="\n  ")
    if not done:
        print(*lines[-10:], sep="\n  ")
    return done


class Shootout:
    """One model and number of patches."""

    def __init__(self, model: ModelConfig, batch: int, args: argparse.Namespace) -> None:
        self.model, self.device, self.dry_run = model, args.device, args.dry_run
        self.networks = networks_of(model, args.device)
        self.magnitude = magnitudes(model, batch, args.device)
        self.looked_at = sorted({0, batch // 2, batch - 1})
        with torch.no_grad():
            some = self.magnitude[self.looked_at].double()
            self.truth = [random_network(model.unet, seed).to(self.device).double()(some)
                          for seed in range(len(model.stems))]  # fmt: skip
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.runs: dict[str, Callable[[], Any]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def add(self, name: str, precision: str, make: Callable[[], tuple[Callable[[Tensor], Any], Tensor]]) -> None:
        """`make` gives a function and what it is called with. Who fails is left out, with the reason."""
        try:
            function, magnitude = make()
            run = partial(function, magnitude)
            masks = run()
            error = max(float((mask[self.looked_at].double() - truth).abs().max())
                        for mask, truth in zip(masks, self.truth, strict=True))  # fmt: skip
            del masks
            if not error <= TOLERANCE[precision]:
                raise ValueError(f"its masks are {error:.1e} off, more than {TOLERANCE[precision]:.0e}")
        except Exception as problem:  # whatever an engine comes up with: the others go on without it
            self.failed[name] = gpu.left_out(name, problem)
        else:
            self.runs[name], self.facts[name] = run, {"precision": precision, "largest_error": error}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def graphed(self, make: Callable[[], tuple[Callable[[Tensor], Any], Tensor]]) -> tuple[gpu.Graphed, Tensor]:
        function, magnitude = make()
        return gpu.Graphed(function, magnitude, self.pool), magnitude

    def ours(self, precision: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        plan = gpu.plan(self.networks, self.device, precision)
        return lambda magnitude: plan.estimate(magnitude, self.model.stems), self.magnitude

    def torch(self, dtype: torch.dtype, channels_last: bool) -> tuple[Callable[[Tensor], Any], Tensor]:
        stems = TorchStems(self.networks, dtype=dtype, channels_last=channels_last)
        return stems, stems.prepare(self.magnitude)

    def compiled(self) -> tuple[Callable[[Tensor], Any], Tensor]:
        stems = compiled_stems(self.networks, self.dry_run)

        def run(magnitude: Tensor) -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # the last call's masks may be written over
            return stems(magnitude)

        return run, stems.prepare(self.magnitude)


def measure(
    name: str, batch: int, with_compile: bool, args: argparse.Namespace, best: dict[str, float]
) -> dict[str, Any]:
    model = gpu.model_of(name, args)
    shootout = Shootout(model, batch, args)
    for precision in PRECISIONS:
        make = partial(shootout.ours, precision)
        shootout.add(f"{OURS} {precision}", precision, make)
        shootout.add(f"{OURS} {precision}{GRAPH}", precision, partial(shootout.graphed, make))
    halves = partial(shootout.torch, torch.float16, True)
    shootout.add(EAGER, "float32", partial(shootout.torch, torch.float32, False))
    shootout.add(HALVES, "float16", halves)
    shootout.add(HALVES + GRAPH, "float16", partial(shootout.graphed, halves))
    if with_compile:
        shootout.add(COMPILED, "float16", shootout.compiled)
    else:
        shootout.failed[COMPILED] = f"was not compiled within {args.compile_seconds:.0f} s for all"

    flop = batch * len(model.stems) * sum(layer_flop(model.unet, model.spectrogram.bins, model.patch_frames).values())
    timings: dict[str, Any] = gpu.alternate(shootout.runs, gpu.Clock(args.device), args)
    for rival, each in timings.items():
        each |= shootout.facts[rival]
        each["tflops"] = flop / each["median_s"] / 1e12
        precision = each["precision"]
        each["share_of_peak"] = each["tflops"] * 1e12 / gpu.PEAK_FLOPS[precision]
        measured = best["float32_flops" if precision == "float32" else "float16_flops"]
        each["share_of_measured_peak"] = each["tflops"] * 1e12 / measured
        gpu.show(rival, each, f"{each['tflops']:7.1f} TFLOP/s, off by {each['largest_error']:.1e}")
    return {
        "model": name, "patches": batch, "stems": len(model.stems), "gflop": flop / 1e9,
        "engines": timings, "failed": shootout.failed,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = gpu.parser(__doc__, seconds=5.0, rounds=50)
    options.add_argument("--patches", nargs="+", type=int, default=None)
    options.add_argument("--compile-seconds", type=float, default=90.0, help="for torch.compile; 0 leaves it out")
    options.add_argument("--compile-only", action="store_true", help=argparse.SUPPRESS)
    args = gpu.parse(options, arguments)
    args.patches = args.patches or ([1, 3] if args.dry_run else [1, 20, 320])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the rivals' best
    if args.compile_only:
        compile_all(args)
        return 0
    there = compiled(args) if args.compile_seconds > 0 else set()
    best = gpu.ceilings(args)
    rows: list[dict[str, Any]] = []
    for batch in args.patches:
        for name in args.models:
            print(f" {name}, {batch} patches")
            rows.append(measure(name, batch, (name, batch) in there, args, best))
            if args.device.type == "cuda":
                torch.cuda.empty_cache()
            facts = {"peak_flops": gpu.PEAK_FLOPS, "bandwidth": gpu.BANDWIDTH, "measured": best, "tolerance": TOLERANCE}
            path = save("unet_cuda", {"dry_run": args.dry_run, **facts, "networks": rows})
    print(path)
    return int(any(name.startswith(OURS) for row in rows for name in row["failed"]))  # ours must not fail


if __name__ == "__main__":
    sys.exit(main())
