"""How long does a whole song take on a GPU: waves that are there, in main memory, and in files?

    python benchmarks/separate_cuda.py [--models jansson2017 spleeter] [--song 240]

The song is of the model's rate and channels, noise; the weights are random, which is as much work as real ones. Both
stems are made. "on the GPU" is wave to waves in the GPU's memory, the pipeline driven directly; "authors' grid" the
same without our overlapping patches and shifted grids of frames; "public call" is `separator(wave, rate)` with that
wave, which also checks it block by block, and waits for the GPU to do so; "array" is the call from NumPy's arrays to
NumPy's, "files" WAV to WAV files, where soundfile is installed. The rivals are the same pipeline in plain PyTorch: in
float32 without TF32 (`PYUNETSEP_KERNELS=0`), and with float16 networks, norms folded in and channels last, its segments
as CUDA graphs. One that should have graphs but has none is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import torch
from engines import folded, transposed
from harness import save
from torch import Tensor

from pyunetsep import Separator
from pyunetsep.benchmark import random_checkpoint, use_kernels
from pyunetsep.checkpoint import Checkpoint
from pyunetsep.config import EXACT, ModelConfig, SeparatorConfig
from pyunetsep.cuda_graph import CudaGraphs, Graph
from pyunetsep.engine import Engine, batch_patches
from pyunetsep.stream import StemStream
from pyunetsep.unet import UNet

OURS, OURS_FULL = "pyunetsep float16", "pyunetsep float32"
PLAIN, HALVES = "plain PyTorch float32", "plain PyTorch float16, graph"
RIVALS = (OURS, OURS_FULL, PLAIN, HALVES)
LEAST_SNR_DB = 30.0  # of any rival's stems against ours in float32; 16 bits alone cost some


class HalfNetworks:
    """PyTorch's own networks in 16 bits, as an engine's estimator; spectra are read as they lie in memory."""

    dtype, largest_magnitude = torch.float32, None

    def __init__(self, networks: Mapping[str, UNet], device: torch.device) -> None:
        self.device = device
        self.networks = {stem: transposed(folded(network)).to(device, torch.float16, memory_format=torch.channels_last)
                         for stem, network in networks.items()}  # fmt: skip

    @torch.inference_mode()
    def estimate(
        self, magnitude: Tensor, stems: Sequence[str], *, masked: bool = False, out: Tensor | None = None
    ) -> Tensor:
        spectra = magnitude.mT
        halves = spectra.half().contiguous(memory_format=torch.channels_last)
        if out is None:
            out = spectra.new_empty(len(stems), *spectra.shape).mT
        for name, estimate in zip(stems, out, strict=True):
            mask = self.networks[name](halves)
            if masked:
                torch.mul(mask, spectra, out=estimate.mT)
            else:
                estimate.mT.copy_(mask)
        return out


class HalfSeparator(Separator):
    """The pipeline on `HalfNetworks`."""

    engine: Engine | None = None

    def _engine(self, config: SeparatorConfig) -> Engine:
        if self.engine is None:
            estimator = HalfNetworks(self.networks, self.device)
            batch = batch_patches(self.model, self.config, self.device)
            self.engine = Engine(estimator, batch, graphs=self.device.type == "cuda")
        return self.engine


class Rival:
    """One way to run the pipeline."""

    def __init__(self, name: str, checkpoint: Checkpoint, device: torch.device) -> None:
        self.name, self.kernels = name, name in (OURS, OURS_FULL)
        kind = HalfSeparator if name == HALVES else Separator
        full = name == OURS_FULL
        self.graphed = name != PLAIN and device.type == "cuda"
        self.separator = kind(checkpoint, device=device, config=SeparatorConfig(precision="float32" if full else None))

    def run(self, work: Callable[[Separator], Any]) -> Any:
        with use_kernels(self.kernels):
            return work(self.separator)

    def on_device(self, wave: Tensor, *, plainly: bool = False) -> dict[str, Tensor]:
        """[channels, samples] on the device -> the stems, there; `plainly`: on the authors' grid."""

        def work(separator: Separator) -> dict[str, Tensor]:
            model, config = separator.model, separator.config
            if plainly:
                config = dataclasses.replace(EXACT, precision=config.precision)
            rate_hz, channels = model.spectrogram.sample_rate_hz, wave.shape[0]
            stream = StemStream(model, separator._engine(config), config, rate_hz, channels, model.stems)
            parts = [stream.push(wave), stream.flush()]
            return {stem: torch.cat([part[stem] for part in parts], -1) for stem in model.stems}

        return self.run(work)

    def public_call(self, wave: Tensor) -> dict[str, Tensor]:
        return self.run(lambda separator: separator(wave, separator.model.spectrogram.sample_rate_hz))

    def warm_up(self, wave: Tensor) -> dict[str, Tensor]:
        """The stems `on_device`, after runs enough for graphs, of which the second of a kind makes one.

        Raises:
            RuntimeError: there should be graphs by now.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)  # each rival's own, not the first one's alone
            for _ in range(3):
                self.on_device(wave, plainly=True)
                self.public_call(wave)
                stems = self.on_device(wave)
        said = dict.fromkeys(str(warning.message) for warning in caught)
        for message in said:
            print(f"  {self.name} warns: {message}")
        if self.graphed and not has_graphs(self.run(lambda separator: separator._engine(separator.config).graphs)):
            raise RuntimeError("; ".join(["has no CUDA graphs", *said]))
        return stems

    def array(self, song: np.ndarray) -> dict[str, np.ndarray]:
        return self.run(lambda separator: separator(song, separator.model.spectrogram.sample_rate_hz))

    def files(self, song: Path, folder: Path) -> None:
        self.run(lambda separator: separator.separate_file(song, folder, overwrite=True))


def has_graphs(graphs: CudaGraphs | None) -> bool:
    """Whether segments have been captured, and were not given up since."""
    return graphs is not None and graphs.limit > 0 and any(isinstance(g, Graph) for g in graphs.graphs.values())


def snr_db(reference: Tensor, wave: Tensor) -> float:
    error = (reference.double() - wave.double()).square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / error.clamp(min=1e-300)))


def songs_of(model: ModelConfig, args: argparse.Namespace, folder: Path) -> tuple[np.ndarray, str | None]:
    """The song as an array, also in song.wav; and why there is no file."""
    rate_hz = model.spectrogram.sample_rate_hz
    shape = (round(args.song * rate_hz), model.unet.input_channels)
    song = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.1)
    if importlib.util.find_spec("soundfile") is None:
        return song, "soundfile is not installed"
    import soundfile

    soundfile.write(folder / "song.wav", song, rate_hz, subtype="PCM_16")
    return song, None


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = gpu.model_of(name, args)
    song, no_file = songs_of(model, args, folder)
    wave = torch.from_numpy(song.T.copy()).to(args.device)
    checkpoint = random_checkpoint(model)
    names = ["on the GPU", "authors' grid", "public call", "array", *([] if no_file else ["files"])]
    ways: dict[str, dict[str, Callable[[], object]]] = {way: {} for way in names}
    snr: dict[str, float] = {}
    failed: dict[str, str] = {}
    truth = Rival(OURS_FULL, checkpoint, args.device).on_device(wave)
    for rival_name in RIVALS:
        try:
            rival = Rival(rival_name, checkpoint, args.device)
            stems = rival.warm_up(wave)
            snr[rival_name] = min(snr_db(truth[stem], stems[stem]) for stem in model.stems)
            if not snr[rival_name] >= LEAST_SNR_DB:
                raise ValueError(f"its stems are other than ours, {snr[rival_name]:.1f} dB")
        except Exception as problem:  # the others go on without it
            failed[rival_name] = gpu.left_out(rival_name, problem)
            continue
        ways["on the GPU"][rival_name] = partial(rival.on_device, wave)
        ways["authors' grid"][rival_name] = partial(rival.on_device, wave, plainly=True)
        ways["public call"][rival_name] = partial(rival.public_call, wave)
        ways["array"][rival_name] = partial(rival.array, song)
        if not no_file:
            ways["files"][rival_name] = partial(rival.files, folder / "song.wav", folder / rival_name)
    result: dict[str, Any] = {
        "model": name, "channels": wave.shape[0], "snr_db": snr, "failed": failed,
        "skipped": {"files": no_file} if no_file else {}, "bytes_in": song.nbytes, "bytes_out": 2 * song.nbytes,
    }  # fmt: skip
    clock = gpu.Clock(args.device, flush=False, wall=True)
    for way, runs in ways.items():
        print(f"  {way}")
        timings: dict[str, Any] = gpu.alternate(runs, clock, args)
        for rival_name, each in timings.items():
            each["times_real_time"] = args.song / each["median_s"]
            gpu.show(rival_name, each, f"{each['times_real_time']:10.0f} x real time, {snr[rival_name]:.1f} dB")
        result[way] = timings
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = gpu.parser(__doc__, seconds=6.0, rounds=30)
    options.add_argument("--song", type=float, default=240.0, metavar="S", help="seconds of music")
    args = gpu.parse(options, arguments)
    if args.dry_run:
        args.song = min(args.song, 1.0)
    torch.backends.cudnn.benchmark = True  # the rivals' best
    rows = []
    for name in args.models:
        print(f" {name}, a song of {args.song:g} s")
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, args, Path(folder)))
        path = save("separate_cuda", {"dry_run": args.dry_run, "seconds": args.song, "songs": rows})
        if args.device.type == "cuda":
            torch.cuda.empty_cache()
    print(path)
    return int(any(rival in (OURS, OURS_FULL) for row in rows for rival in row["failed"]))


if __name__ == "__main__":
    sys.exit(main())
