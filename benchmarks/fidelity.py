"""How close is the separation to TensorFlow Spleeter, to float64, and the sum of the stems to the mixture?

    python benchmarks/fidelity.py REFERENCE [--emulated]

With --emulated the CUDA kernels take part, on the host (tests/emulated; two minutes): how much their precisions cost.
REFERENCE is a folder with mix.npy, tf_vocals.npy and tf_accompaniment.npy, float32 (samples, 2) at 44.1 kHz: a song,
and what TensorFlow Spleeter makes of it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soxr
import torch
from harness import save

from pyunetsep import Separator, models
from pyunetsep.config import EXACT
from pyunetsep.engine import Engine, Networks
from pyunetsep.unmixer import Unmixer

ROOT = Path(__file__).parents[1]
STEMS = ("vocals", "accompaniment")


def snr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - estimate) ** 2)))


@torch.inference_mode()
def exact_stems(checkpoint: models.Checkpoint, engine: Engine, mixture: np.ndarray) -> np.ndarray:
    """[samples, channels] -> [stems, channels, samples], the networks being the engine's."""
    unmixer = Unmixer(checkpoint.config, engine, EXACT, 2, STEMS)
    wave = torch.from_numpy(mixture.T.copy()).to(engine.estimator.dtype)
    return torch.cat((unmixer.push(wave)[0], unmixer.flush()[0]), -1).numpy()


def emulated_engines(checkpoint: models.Checkpoint) -> dict[str, Engine]:
    """The CUDA kernels for networks, in each precision."""
    sys.path.insert(0, str(ROOT))
    from tests.emulated.library import Emulated, emulated_library
    from tests.emulated.network import ELEMENTS, EmulatedPlan

    library = Emulated(emulated_library())
    names = {element: str(element).removeprefix("torch.") for element in ELEMENTS}
    return {names[element]: Engine(EmulatedPlan(library, checkpoint.networks, element), 1) for element in ELEMENTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("--emulated", action="store_true", help="measure the CUDA kernels' precisions too")
    options = parser.parse_args()
    reference: Path = options.reference

    mixture = np.load(reference / "mix.npy")
    checkpoint = models.load("spleeter-2stems")
    separator = Separator(checkpoint, device="cpu")
    exact = separator(mixture, 44_100, exact=True)

    double = {stem: network.double() for stem, network in models.load("spleeter-2stems").networks.items()}
    truth = exact_stems(checkpoint, Engine(Networks(double), 1), mixture)

    def against_truth(stems: np.ndarray) -> dict[str, float]:
        return {stem: snr_db(x, y) for stem, x, y in zip(STEMS, truth, stems, strict=True)}

    results: dict[str, dict[str, float]] = {
        "snr_against_tensorflow_db": {
            stem: snr_db(np.load(reference / f"tf_{stem}.npy"), exact[stem]) for stem in STEMS
        },
        "snr_against_float64_db": against_truth(np.stack([exact[stem].T for stem in STEMS])),
        "largest_error_of_the_sum": {},
    }
    for rate in (8_000, 22_050, 44_100, 48_000, 96_000, 192_000):
        song = mixture if rate == 44_100 else soxr.resample(mixture, 44_100, rate).astype(np.float32)
        stems = separator(song, rate)
        total = stems["vocals"].astype(np.float64) + stems["accompaniment"]
        results["largest_error_of_the_sum"][str(rate)] = float(np.abs(total - song).max())
    if options.emulated:
        for precision, engine in emulated_engines(checkpoint).items():
            stems = exact_stems(checkpoint, engine, mixture)
            results[f"emulated_cuda_{precision}_snr_against_float64_db"] = against_truth(stems)
    for name, values in results.items():
        print(name, {key: float(f"{value:.4g}") for key, value in values.items()})
    print(save("fidelity", results))


if __name__ == "__main__":
    main()
