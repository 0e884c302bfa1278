"""Does training with the kernels learn what training in plain PyTorch learns?

    python benchmarks/training_agreement.py DATA --validation NAME... [--held-out NAME...] [--steps N] [--seeds N]

Runs of the vocals' network in float32 from random weights, each seed once with the kernels and once without: the same
examples, the same weights to start with, the same dropout. Rounding alone is different, which a long run makes as much
of as of another seed; so what they learn agrees if the scores of the two kinds lie no further apart than those of seeds
do. The score is what `pyunetsep train` gives on the validation songs: mean improvement of the energy ratio over the
mixture, pieces of 10 s mixed at 0 dB. Runs are kept in build/, so that an interrupted series goes on; `--only` lets two
processes share it.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from harness import HERE, save

from pyunetsep.benchmark import use_kernels
from pyunetsep.config import to_dict
from pyunetsep.training.config import merged
from pyunetsep.training.run import train

FOLDER = HERE.parent / "build" / "training-agreement"
KINDS = {"kernels": True, "plain PyTorch": False}
CONFIG: dict[str, Any] = {
    "stems": ["vocals"],
    "batch": 8,
    "precision": "float32",
    "average_decay": 0.998,
    "augmentation": dict.fromkeys(("speed_share", "equaliser_share", "drive_share", "reverb_share"), 0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--validation", nargs="+", required=True)
    parser.add_argument("--held-out", nargs="+", default=[], help="songs that stay unheard")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND:SEED", help="these runs, and no results yet")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        for kind, kernels in KINDS.items():
            if args.only and f"{kind}:{seed}" not in args.only:
                continue
            run = run_of(kind, seed, kernels, args)
            runs[kind].append(run)
            print(f"{kind:14s} seed {seed}: {run['nsdr_db']:.2f} dB", flush=True)
    if args.only:
        return
    scores = {kind: [run["nsdr_db"] for run in of_kind] for kind, of_kind in runs.items()}
    means = {kind: statistics.mean(values) for kind, values in scores.items()}
    spreads = {kind: max(values) - min(values) for kind, values in scores.items()}
    apart = means["kernels"] - means["plain PyTorch"]
    print(f"means apart by {apart:+.2f} dB; of seeds {spreads}")
    results = {"config": to_dict(merged(CONFIG)), "steps": args.steps, "runs": runs}
    print(save("training_agreement", {**results, "means_db": means, "spreads_db": spreads, "apart_db": apart}))


def run_of(kind: str, seed: int, kernels: bool, args: argparse.Namespace) -> dict[str, Any]:
    folder = FOLDER / f"{kind.replace(' ', '-')}-{seed}"
    done = folder / "result.json"
    data = {"data": args.data, "validation": args.validation, "test": args.held_out, "seed": seed}
    schedule = {"steps": args.steps, "validate_every": args.steps, "save_every": max(1, args.steps // 4)}
    config = merged({**CONFIG, **data, **schedule})
    wanted = json.loads(json.dumps(to_dict(config)))
    if not done.exists() or json.loads(done.read_text())["config"] != wanted:
        with use_kernels(kernels):  # which refuses to go on with another configuration
            result = train(config, folder, device="cpu", resume=True)
        run = {"seed": seed, "nsdr_db": result.best_score_db}
        done.write_text(json.dumps({"run": run, "config": wanted}))
    made: dict[str, Any] = json.loads(done.read_text())["run"]
    return made


if __name__ == "__main__":
    main()
