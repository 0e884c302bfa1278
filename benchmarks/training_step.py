"""How long does a step of training take, and how much memory, next to eager PyTorch?

    python benchmarks/training_step.py [--preset jansson2017] [--batch 16] [--rounds 7] [--threads 2] [--device cpu]

A step is all of it: examples are drawn and augmented, transformed, and pushed forward and back through both stems'
networks; the optimiser and the average of the weights follow. "eager PyTorch" is the same by its own means: torch.stft,
nn.Dropout and Adam on the same waves, as one would write it first (float32, default layout), and as one would make it
faster (bfloat16, channels last, a fused optimiser). All take turns in one process; memory is the peak of a process of
its own. On a GPU, results go to training_step_cuda.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import all_threads, save

from pyunetsep.benchmark import alternate
from pyunetsep.config import to_dict
from pyunetsep.data import STEMS, Recording, Track
from pyunetsep.training.config import TrainingConfig, merged
from pyunetsep.training.examples import Examples
from pyunetsep.training.trainer import Trainer
from pyunetsep.unet import UNet

EAGER, FAST_EAGER = "eager PyTorch", "eager PyTorch, bfloat16"
VARIANTS: dict[str, dict[str, Any]] = {
    "pyunetsep, float32": {},
    "pyunetsep, bfloat16": {"precision": "bfloat16"},
    "pyunetsep, bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}
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


class Eager:
    """What one would write with PyTorch alone."""

    def __init__(self, config: TrainingConfig, examples: Examples, device: torch.device, *, fast: bool) -> None:
        self.config, self.examples, self.device, self.fast = config, examples, device, fast
        self.layout = torch.channels_last if fast else torch.contiguous_format
        self.networks = {
            stem: UNet(config.model.unet).to(device, memory_format=self.layout).train() for stem in config.model.stems
        }
        self.averages = {stem: copy.deepcopy(network) for stem, network in self.networks.items()}
        parameters = [p for network in self.networks.values() for p in network.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, fused=fast)
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            masks = {stem: network(magnitude) for stem, network in self.networks.items()}
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


def make(name: str, config: TrainingConfig, device: torch.device) -> Eager | Trainer:
    if name in (EAGER, FAST_EAGER):
        return Eager(config, Examples(recordings(config), config, device), device, fast=name == FAST_EAGER)
    variant = merged(to_dict(config), VARIANTS[name])
    return Trainer(variant, Examples(recordings(variant), variant, device), device=device)


def step(rival: Eager | Trainer) -> None:
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
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    config = merged({"preset": args.preset, "batch": args.batch})
    if args.memory_of:
        measure_memory(args.memory_of, config, device)
        return
    started = time.monotonic()
    names = [EAGER, FAST_EAGER, *VARIANTS]
    rivals = {name: make(name, config, device) for name in names}
    timings = alternate({name: lambda rival=rival: step(rival) for name, rival in rivals.items()}, rounds=args.rounds)
    results: dict[str, Any] = {"preset": args.preset, "batch": args.batch, "threads": args.threads, "steps": {}}
    for name in names:
        results["steps"][name] = {**timings[name], **peak_mib(name, args)}
        row = results["steps"][name]
        ratio = timings[EAGER]["median_s"] / row["median_s"]
        print(f"{name:32s} {row['median_s'] * 1e3:8.0f} ms  {ratio:5.2f}  {row['above_imports_mib']:7.0f} MiB")
    print(f"{time.monotonic() - started:.0f} s")
    print(save("training_step_cuda" if device.type == "cuda" else "training_step_cpu", results))


if __name__ == "__main__":
    main()
