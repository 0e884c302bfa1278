"""Which choices of a training run pay, on songs held out for validation?

    python benchmarks/training_choices.py DATA --validation NAME... [--held-out NAME...] [--steps N] [--only CHOICE...]

Short runs of the vocals network from one seed, each with one choice changed, and the score that `pyunetsep train` gives
them on the validation songs: mean improvement of the energy ratio over the mixture, pieces of 10 s mixed at 0 dB. Runs
are kept in build/, so that an interrupted series goes on. What pays in a short run need not pay in a long one:
augmentation and dropout are there for those.
"""

import argparse
from typing import Any

import torch
from harness import HERE, save

from pyunetsep.config import to_dict
from pyunetsep.training.config import merged
from pyunetsep.training.run import train

NO_AUGMENTATION = dict.fromkeys(("speed_share", "equaliser_share", "drive_share", "reverb_share"), 0.0)
BASE: dict[str, Any] = {
    "stems": ["vocals"],
    "batch": 8,
    "init": "spleeter-2stems",
    "init_by": "transfer",
    "precision": "bfloat16",
    "average_decay": 0.998,
    "augmentation": NO_AUGMENTATION,
}
CHOICES: dict[str, dict[str, Any]] = {
    "base": {},
    "random weights to start with": {"init": "", "init_by": "weights"},
    "complex loss": {"loss": "complex"},
    "batches of 16, as many examples": {"batch": 16},
    "dropout 0.1": {"dropout": 0.1},
    "all augmentation": {"augmentation": {}},
    "no remixes": {"augmentation": {**NO_AUGMENTATION, "remix": 0.0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--validation", nargs="+", required=True)
    parser.add_argument("--held-out", nargs="+", default=[], help="songs that stay unheard")
    parser.add_argument("--steps", type=int, default=1600, help="of batches of 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"base": to_dict(merged(BASE)), "steps": args.steps, "choices": {}}
    for name in args.only:
        steps = args.steps * BASE["batch"] // CHOICES[name].get("batch", BASE["batch"])
        data = {"data": args.data, "validation": args.validation, "test": args.held_out}
        schedule = {"steps": steps, "validate_every": steps, "save_every": max(1, steps // 4)}
        config = merged({**BASE, **CHOICES[name], **data, **schedule})
        folder = HERE.parent / "build" / "training-choices" / name.replace(" ", "-").replace(",", "")
        result = train(config, folder, device="cpu", resume=True)
        results["choices"][name] = {
            "nsdr_db": result.best_score_db,
            "elapsed_s": result.elapsed_s,
            "changed": CHOICES[name],
        }
        difference = result.best_score_db - results["choices"][args.only[0]]["nsdr_db"]
        print(f"{name:34s} {result.best_score_db:6.2f} dB ({difference:+.2f}), {result.elapsed_s:.0f} s", flush=True)
    print(save("training_choices", results))


if __name__ == "__main__":
    main()
