"""`python -m tests.fuzz`: hostile input for the readers of files, for as long as there is time."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from .guard import CORPUS, load, names
from .runner import ROOT, fuzz, save

EXAMPLES = """examples:
  python -m tests.fuzz --seconds 60                         a minute for each target
  python -m tests.fuzz audio --seconds 3600 --json benchmarks/results/fuzz.json
  python -m tests.fuzz headers configuration --inputs 10000000
  python -m tests.fuzz --write-seeds                        makes corpus/*/seed-* anew

Guided by coverage where atheris is installed (pip install atheris). What goes wrong is kept in FOLDER/findings, and
reported until it is moved from there: an input, and for a Python exception its traceback beside it. When it is put
right, the input goes to tests/fuzz/corpus, under a name that says what it is.
"""


def main(argv: list[str] | None = None) -> int:
    """Fuzzes; 1 if anything was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"{', '.join(names())} (default: all), or a module with a TARGET"
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="for each target")
    parser.add_argument("--inputs", type=int, default=2**31 - 1, help="for each target")
    parser.add_argument("--driver", choices=("atheris", "mutation"), help="default: atheris where it is installed")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="default: build/fuzz")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; those of other targets in it stay")
    parser.add_argument("--write-seeds", action="store_true", help="write the corpus of sound inputs, and stop")
    args = parser.parse_args(argv)
    targets = args.targets or names()
    if args.write_seeds:
        for name in targets:
            write_seeds(name)
        return 0
    if math.isinf(args.seconds) and args.inputs == 2**31 - 1:
        parser.error("say how long: --seconds or --inputs")
    found = False
    for name in targets:
        report = fuzz(
            name, folder=args.folder, seconds=args.seconds, inputs=args.inputs, driver=args.driver, seed=args.seed,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
        print(
            f"{name}: {report.inputs} inputs in {report.seconds:.0f} s, {report.inputs_per_s:.0f}/s, "
            f"{report.accepted} accepted, slowest {report.slowest_input_s:.2f} s, peak {report.peak_memory_mib:.0f} MiB"
            + (f", coverage {report.coverage}, {report.kept_inputs} inputs kept" if report.coverage else ""),
            flush=True,
        )
        for finding in report.findings:
            print(f"  found {args.folder / 'findings' / name / finding}")
        found |= bool(report.findings)
        if args.json:
            save(args.json, {name: report})
    return int(found)


def write_seeds(name: str) -> None:
    """Replaces a target's seed-* files."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("seed-*"):
        path.unlink()
    for seed, data in load(name).seeds().items():
        (folder / f"seed-{seed}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
