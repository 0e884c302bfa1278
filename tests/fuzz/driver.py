"""Where inputs come from, in the process that runs them; `runner` starts it and watches it."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import re
import sys
import time
from pathlib import Path
from random import Random

from .guard import Guarded, Shared, Target, load

INSTRUMENTED = ("pyunetsep", "tomllib")  # whose coverage guides atheris
# which libFuzzer must leave alone, so that the runner sees what the process died of
SIGNALS = ("abrt", "bus", "fpe", "ill", "int", "segv", "term", "usr1", "usr2", "xfsz")


def main() -> None:
    parser = argparse.ArgumentParser(description="Started by tests.fuzz.runner.")
    parser.add_argument("target")
    parser.add_argument("--driver", choices=("atheris", "mutation"), required=True)
    parser.add_argument("--work", type=Path, required=True, help="has seeds/, grown/ and the file shared")
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--inputs", type=int, default=2**31 - 1)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    target = _instrumented(args.target) if args.driver == "atheris" else load(args.target)
    guarded = Guarded(target, Shared.at(args.work / "shared"), args.findings)
    _warm_up(target, args.work / "seeds")
    (guided if args.driver == "atheris" else unguided)(guarded, args)


def best() -> str:
    """The driver to take: atheris where it is installed."""
    return "atheris" if importlib.util.find_spec("atheris") else "mutation"


def _instrumented(name: str) -> Target:
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        return load(name)


def _warm_up(target: Target, seeds: Path) -> None:
    """What is imported and allocated once is not the first input's."""
    for path in sorted(seeds.glob("seed-*")):
        try:
            target.run(path.read_bytes())
        except target.documented:
            continue


def unguided(guarded: Guarded, args: argparse.Namespace) -> None:
    """The seeds, then mutations of them and of inputs that had an answer that was not seen before."""
    random, target, deadline = Random(args.seed), guarded.target, time.monotonic() + args.seconds
    files = [path for folder in ("seeds", "grown") for path in sorted((args.work / folder).iterdir())]
    pool = [path.read_bytes() for path in files] or [b""]
    seen: set[str] = set()
    for turn in itertools.count():
        if turn >= args.inputs or time.monotonic() > deadline:
            return
        data = pool[turn] if turn < len(pool) else target.mutate(random.choice(pool), random)[: target.limits.max_bytes]
        answer = re.sub(r"\d+|'[^']*'|\"[^\"]*\"", "", guarded(data))[:120]
        if answer not in seen:
            seen.add(answer)
            pool += [data] if turn >= len(pool) else []


def guided(guarded: Guarded, args: argparse.Namespace) -> None:
    """libFuzzer keeps, in grown/, what reaches new code; every other mutation is its own. Ends the process."""
    import atheris

    limits = guarded.target.limits

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return guarded.target.mutate(data, random)[:max_size]
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    def one(data: bytes) -> None:
        guarded(data)

    options = [
        f"-max_len={limits.max_bytes}",
        f"-runs={args.inputs}",
        f"-max_total_time={min(math.ceil(args.seconds), 2**31 - 1) if math.isfinite(args.seconds) else 0}",
        f"-seed={args.seed % 2**31 or 1}",
        f"-artifact_prefix={args.work}/",
        *("-timeout=100000", "-rss_limit_mb=0", "-print_final_stats=1", "-len_control=0", "-reload=0"),
        *(f"-handle_{signal}=0" for signal in SIGNALS),
    ]
    folders = [str(args.work / "grown"), str(args.work / "seeds")]
    atheris.Setup([sys.argv[0], *options, *folders], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
