"""How well do models separate voices and songs that they have not heard?

    python benchmarks/quality.py DATA --karaoke PATTERN... --songs PATTERN... --model NAME=MODEL... [--name quality]

DATA has songs with known stems (see `pyunetsep evaluate --help`), MODEL is a file or a name. "karaoke" are clips as
MIR-1K has them: pieces of 10 s mixed at 0 dB, scored by GNSDR (BSS Eval v3, 8192 Hz mono). "songs" are full-band songs
as they are, scored by the plain energy ratio less the mixture's, below and above 4096 Hz. The ideal ratio mask and the
plain mixture stand beside them. Scores are kept song by song in build/, so that an interrupted run goes on, and their
means in results/<name>.json.
"""

import argparse
from pathlib import Path
from typing import Any

from harness import HERE, save

from pyunetsep.data import STEMS
from pyunetsep.evaluation import ScoringOptions, evaluate

YARDSTICKS = {"mixture": "mixture", "ideal ratio mask": "oracle"}


def scores(data: list[str], only: list[str], models: dict[str, str], options: ScoringOptions, file: Path) -> Any:
    file.parent.mkdir(parents=True, exist_ok=True)
    document = evaluate(
        data,
        [*models.values()],
        only=only,
        options=options,
        device="cpu",
        results=file,
        progress=lambda done, total, what: print(f"\r{done} of {total}: {what}\033[K", end="", flush=True),
    )
    print()
    if document["failed"]:
        raise SystemExit(f"could not be scored: {document['failed']}")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--karaoke", nargs="+", default=[], help="names or groups of songs to mix at 0 dB")
    parser.add_argument("--songs", nargs="+", default=[], help="names or groups of full-band songs")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=MODEL")
    parser.add_argument("--name", default="quality", help="of the results")
    args = parser.parse_args()
    models = {**YARDSTICKS, **dict(text.split("=", 1) for text in args.model)}
    kept = HERE.parent / "build" / args.name
    results: dict[str, Any] = {}
    for kind, only, options in (
        ("karaoke", args.karaoke, ScoringOptions(metrics=("nsdr",), equal_levels=True)),
        ("songs", args.songs, ScoringOptions(metrics=("band",))),
    ):
        if only:
            (metric,) = options.metrics
            document = scores(args.data, only, models, options, kept / f"{kind}.json")
            results[kind] = {"songs": only, "metric": document["metrics"][metric], "models": {}}
            for name, model in models.items():
                entry = document["models"][model]
                row = {**{stem: entry["aggregates"][metric][stem] for stem in STEMS}, "identity": entry["identity"]}
                if kind == "karaoke":
                    row["gnsdr_by_song"] = {
                        song: {stem: song_mean(report[metric], stem) for stem in STEMS}
                        for song, report in entry["songs"].items()
                    }
                results[kind]["models"][name] = row
    for kind, part in results.items():
        for name, row in part["models"].items():
            keys = ("gnsdr", "gsir", "gsar") if kind == "karaoke" else ("low_mean", "high_mean", "full_mean")
            figures = {stem: {key: round(row[stem][key], 2) for key in keys} for stem in STEMS}
            print(f"{kind:8s} {name:28s} {figures}")
    print(save(args.name, results))


def song_mean(pieces: list[dict[str, Any]], stem: str) -> float:
    """GNSDR of one song."""
    scored = [(piece[stem]["nsdr"], piece["duration_s"]) for piece in pieces if piece[stem]["nsdr"] is not None]
    return round(sum(score * duration_s for score, duration_s in scored) / sum(d for _, d in scored), 3)


if __name__ == "__main__":
    main()
