"""`pyunetsep bench`: how fast this machine separates, and what the kernels do for that."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from .exit_codes import DONE

SONG_S = {"cpu": 24.0, "cuda": 240.0}
DEFAULT_S = 2.0  # a comparison

EXAMPLES = """examples:
  pyunetsep bench
      half a minute: one thread, then all of them
  pyunetsep bench --threads 4 --seconds 10
      four threads alone; more rounds, so steadier figures
  pyunetsep bench --json > bench.json
      with quartiles and extremes

The first figures are what the processor can do: multiply-adds that touch no memory. Then come both networks and a whole
song, by the project's own kernels and in plain PyTorch, turn by turn; times are medians. Where a GPU can be used, the
song comes again, the kernels in float16 and PyTorch in float32. 'of the peak' is the share of the first figures that a
network reaches, counting what its convolutions take by definition: as the kernels' algorithm needs fewer multiply-adds
than that, more than 100 % is possible. 'real time' is seconds of music in a second of work.

Speed does not depend on what the weights are, so they are random: no model is needed, and nothing is downloaded. Let
nothing else run beside it.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure how fast this machine separates",
        description="Measures how fast this machine's processor separates, with the kernels and without.",
        epilog=EXAMPLES,
    )
    processors = os.cpu_count() or 1

    def threads(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= processors):
            raise argparse.ArgumentTypeError(f"got {text!r}, wants 1 to {processors}, the processors here")
        return int(text)

    parser.add_argument(
        "--threads", metavar="N", type=threads, nargs="+", help="numbers of threads (default: 1, and what torch uses)"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=_seconds,
        default=DEFAULT_S,
        help=f"for each comparison (default: {DEFAULT_S:g}); two rounds at least",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"got {text!r}, wants more than 0 and at most 3600")
    return seconds


def run(args: argparse.Namespace) -> int:
    import torch

    from ..benchmark import cpu_name, fma_peak, threads
    from ..device import cuda_obstacle
    from ..ops import kernels

    counts: list[int] = args.threads or sorted({1, torch.get_num_threads()})
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "simd": kernels.simd_level(),
        "threads": counts,
        "peak_gflops": {},
        "networks": [],
    }

    def show(line: str = "") -> None:
        if not args.json:
            print(line, flush=True)

    show(f"{facts['cpu']}, torch {facts['torch']}, kernels for {facts['simd']}\n")
    show(f"{'':32}{'threads':>8}{'GFLOP/s':>14}")
    for count in counts:
        with threads(count):
            peak = facts["peak_gflops"][str(count)] = fma_peak() / 1e9
        show(f"{'multiply-adds alone':32}{count:8}{peak:14.1f}")
    show(f"\n{'':32}{'threads':>8}{'kernels':>14}{'plain PyTorch':>16}{'ratio':>8}")
    for count in counts:
        with threads(count):
            for row in _networks(args.seconds):
                row["threads"], row["share_of_peak"] = count, row["gflops"] / facts["peak_gflops"][str(count)]
                facts["networks"].append(row)
                show(_line(f"network {row['model']}, a patch", row) + f"{row['share_of_peak']:8.0%} of the peak")
    with threads(max(counts)):
        for device in ["cpu"] if cuda_obstacle() else ["cpu", "cuda"]:
            row = {**_song(args.seconds, device), "threads": max(counts)}
            facts["song" if device == "cpu" else "song_on_gpu"] = row
            name = f"a song of {row['seconds']:g} s" + (" on the GPU" if device == "cuda" else "")
            show(_line(name, row) + f"{row['times_real_time']:8.0f} x real time")
    if args.json:
        print(json.dumps(facts, indent=2))
    return DONE


def _line(name: str, row: dict[str, Any]) -> str:
    times = (1e3 * row[rival]["median_s"] for rival in ("kernels", "plain_pytorch"))
    ours, theirs = (f"{time:.1f} ms" for time in times)
    return f"{name:32}{row['threads']:8}{ours:>14}{theirs:>16}{row['ratio']:8.1f}"


def _ratio(timings: dict[str, dict[str, float]]) -> float:
    return timings["plain_pytorch"]["median_s"] / timings["kernels"]["median_s"]


def _networks(seconds: float) -> Iterator[dict[str, Any]]:
    """Each family's network on one patch, as the separator would run it."""
    import torch

    from ..benchmark import alternate, layer_flop, random_network
    from ..config import PRESETS
    from ..unet_plan import UNetPlan

    for name, model in PRESETS.items():
        bins, frames = model.spectrogram.bins, model.patch_frames
        network = random_network(model.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        plan = UNetPlan(network, bins=bins, frames=frames)
        magnitude = torch.rand(1, model.unet.input_channels, frames, bins).mT
        rivals = {
            "kernels": lambda p=plan, m=magnitude: p(m),
            "plain_pytorch": lambda n=network, m=magnitude: n.estimate(m),
        }
        timings = alternate(rivals, seconds=seconds)
        flop = sum(layer_flop(model.unet, bins, frames).values())
        yield {
            "model": name,
            "patches": 1,
            "gflop": flop / 1e9,
            **timings,
            "ratio": _ratio(timings),
            "gflops": flop / timings["kernels"]["median_s"] / 1e9,
        }


def _song(seconds: float, device: str) -> dict[str, Any]:
    """A whole separation, array to stems: noise is as much work as music."""
    import numpy as np

    from ..benchmark import alternate, random_checkpoint, use_kernels
    from ..config import PRESETS
    from ..separator import Separator

    model = PRESETS["spleeter"]
    separator = Separator(random_checkpoint(model), device=device)
    rate_hz = model.spectrogram.sample_rate_hz
    song_s = SONG_S[device]
    song = np.random.default_rng(0).uniform(-0.5, 0.5, (round(song_s * rate_hz), 2)).astype(np.float32)

    def separate(with_kernels: bool) -> None:
        with use_kernels(with_kernels):
            separator(song, rate_hz)

    timings = alternate({"kernels": lambda: separate(True), "plain_pytorch": lambda: separate(False)}, seconds=seconds)
    return {
        "model": "spleeter",
        "weights": "random",
        "seconds": song_s,
        **timings,
        "ratio": _ratio(timings),
        "times_real_time": song_s / timings["kernels"]["median_s"],
    }
