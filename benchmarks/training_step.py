"""How long does a step of training take, and how much memory, next to eager PyTorch?

    python benchmarks/training_step.py [--preset jansson2017] [--batch 16] [--rounds 7] [--threads 2] [--device cpu]

A step is all of it: examples are drawn and augmented, transformed, and pushed forward and back through both stems'
networks; the optimiser and the average of the weights follow. The rivals are the same by PyTorch's own means:
torch.stft, nn.Dropout and Adam on the same waves, as one would write it first (float32, default layout), and as one
would make it faster (channels last and a fused optimiser, then bfloat16, then compiled). All take turns in one process;
memory is the peak of a process of its own. On a GPU, results go to training_step_cuda.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import all_threads, save
from torch import nn

from pyunetsep.benchmark import alternate, use_kernels
from pyunetsep.data import STEMS, Recording, Track
from pyunetsep.training.config import TrainingConfig, merged
from pyunetsep.training.examples import Examples
from pyunetsep.training.trainer import Trainer
from pyunetsep.unet import UNet

OURS = "pyunetsep"
EAGER = "eager PyTorch"
SONG_S = 60.0
MEMORY_STEPS = 3


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


@dataclass(frozen=True)
class Means:
    """Which of PyTorch's means a rival uses."""

    fast: bool = False  # channels last, a fused optimiser
    bfloat16: bool = False
    compiled: bool = False


RIVALS = {
    EAGER: Means(),
    "eager PyTorch, channels last": Means(fast=True),
    "eager PyTorch, bfloat16": Means(fast=True, bfloat16=True),
    "compiled PyTorch": Means(fast=True, compiled=True),
    "compiled PyTorch, bfloat16": Means(fast=True, bfloat16=True, compiled=True),
}


class Torch:
    """What one would write with PyTorch alone."""

    def __init__(self, config: TrainingConfig, examples: Examples, device: torch.device, means: Means) -> None:
        self.config, self.examples, self.device, self.means = config, examples, device, means
        self.layout = torch.channels_last if means.fast else torch.contiguous_format
        self.networks = {
            stem: UNet(config.model.unet).to(device, memory_format=self.layout).train() for stem in config.model.stems
        }
        for network in self.networks.values():
            for block in network.decoder_blocks:
                block.dropout = nn.Dropout(block.dropout.probability)  # type: ignore[assignment]
        self.trained = {
            stem: torch.compile(network) if means.compiled else network for stem, network in self.networks.items()
        }
        self.averages = {stem: copy.deepcopy(network) for stem, network in self.networks.items()}
        parameters = [p for network in self.networks.values() for p in network.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, fused=means.fast)
        self.window = torch.hann_window(config.model.spectrogram.n_fft, device=device)
        self.done = 0

    def step(self) -> None:
        spectrogram = self.config.model.spectrogram
        draws = [self.examples.sampler.draw(self.done, index) for index in range(self.config.batch)]
        spectra = {}
        for stem in STEMS:
            waves = self.examples._waves(draws, stem)
            spectrum = torch.stft(
                waves.flatten(0, 1), spectrogram.n_fft, spectrogram.hop_length, window=self.window, center=False,
                return_complex=True,
            )  # fmt: skip
            band = spectrum[:, spectrogram.first_bin : spectrogram.first_bin + spectrogram.bins]
            spectra[stem] = band.unflatten(0, waves.shape[:2])
        mixture = (spectra["vocals"] + spectra["accompaniment"]).abs()
        loudest = mixture.amax((1, 2, 3), keepdim=True)
        magnitude = (mixture / loudest).contiguous(memory_format=self.layout)
        with use_kernels(False), torch.autocast(self.device.type, torch.bfloat16, enabled=self.means.bfloat16):
            masks = {stem: network(magnitude) for stem, network in self.trained.items()}
        losses = [
            (mask.float() * magnitude - spectra[stem].abs() / loudest).abs().mean() for stem, mask in masks.items()
        ]
        self.optimiser.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        self.optimiser.step()
        with torch.no_grad():
            for stem, network in self.networks.items():
                for mine, theirs in zip(self.averages[stem].parameters(), network.parameters(), strict=True):
                    mine.lerp_(theirs, 1 - self.config.average_decay)
        [loss.item() for loss in losses]
        self.done += 1


def make(name: str, config: TrainingConfig, device: torch.device) -> Torch | Trainer:
    examples = Examples(recordings(config), config, device)
    return Trainer(config, examples, device=device) if name == OURS else Torch(config, examples, device, RIVALS[name])


def step(rival: Torch | Trainer) -> None:
    report = rival.step()
    if report is not None:
        report.losses.tolist()  # waits for it


def peak_mib(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Of a process that makes some steps, and of the part that is there before."""
    command = [sys.executable, __file__, "--memory-of", name, "--preset", args.preset, "--batch", str(args.batch)]
    command += ["--threads", str(args.threads), "--device", args.device]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def measure_memory(name: str, config: TrainingConfig, device: torch.device) -> None:
    def resident_mib(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    before = resident_mib("VmRSS:")
    rival = make(name, config, device)
    for _ in range(MEMORY_STEPS):
        step(rival)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident_mib("VmHWM:") - before
    print(json.dumps({"above_imports_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="jansson2017")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), help="default: all")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = merged({"preset": args.preset, "batch": args.batch})
    if args.memory_of:
        measure_memory(args.memory_of, config, device)
        return
    started = time.monotonic()
    names = [OURS, *(args.rivals or RIVALS)]
    rivals = {name: make(name, config, device) for name in names}
    timings = alternate({name: lambda rival=rival: step(rival) for name, rival in rivals.items()}, rounds=args.rounds)
    results: dict[str, Any] = {"preset": args.preset, "batch": args.batch, "threads": args.threads, "steps": {}}
    for name in names:
        results["steps"][name] = {**timings[name], **peak_mib(name, args)}
        row = results["steps"][name]
        ratio = row["median_s"] / timings[OURS]["median_s"]
        print(f"{name:32s} {row['median_s'] * 1e3:8.0f} ms  {ratio:5.2f}  {row['above_imports_mib']:7.0f} MiB")
    print(f"{time.monotonic() - started:.0f} s")
    print(save("training_step_cuda" if device.type == "cuda" else "training_step_cpu", results))


if __name__ == "__main__":
    main()
