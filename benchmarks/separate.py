"""How many seconds of music does a second of work separate? Array to stems, spleeter-2stems, real weights if cached.

    python benchmarks/separate.py [--seconds 120] [--rounds 5] [--device cpu]

Speed does not depend on what the weights are, so random ones serve where the real ones cannot be had.
"""

import argparse
import os
import resource

import numpy as np
from harness import alternate, save

from pyunetsep import ModelUnavailableError, Separator, models
from pyunetsep.checkpoint import Checkpoint, build_networks
from pyunetsep.config import SPLEETER
from pyunetsep.unet import UNet

RATE = 44_100


def load() -> tuple[Checkpoint, str]:
    try:
        return models.load("spleeter-2stems"), "real"
    except ModelUnavailableError:
        states = {stem: UNet(SPLEETER.unet).state_dict() for stem in SPLEETER.stems}
        info = models.REGISTRY["spleeter-2stems"].info
        return Checkpoint(SPLEETER, info, build_networks(SPLEETER, states)), "random"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    checkpoint, weights = load()
    separator = Separator(checkpoint, device=args.device)
    samples = round(args.seconds * RATE)
    music = np.random.default_rng(0).normal(0, 0.1, (samples, 2)).astype(np.float32)

    def plain() -> None:
        os.environ["PYUNETSEP_KERNELS"] = "0"
        try:
            separator(music, RATE)
        finally:
            del os.environ["PYUNETSEP_KERNELS"]

    rivals = {
        "default": lambda: separator(music, RATE),
        "default, plain PyTorch": plain,
        "exact": lambda: separator(music, RATE, exact=True),
        "default, from 48 kHz": lambda: separator(music, 48_000),
    }
    timings = alternate(rivals, args.rounds)
    for name, timing in timings.items():
        seconds = samples / (48_000 if "48 kHz" in name else RATE)
        timing["times_real_time"] = seconds / timing["median_s"]
        print(f"{name:24s} {timing['median_s']:7.2f} s   {timing['times_real_time']:6.1f} x real time")
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results = {
        "seconds": args.seconds,
        "weights": weights,
        "device": args.device,
        "peak_gib": peak_gib,
        "runs": timings,
    }
    print(save(f"separate_{args.device.split(':')[0]}", results))


if __name__ == "__main__":
    main()
