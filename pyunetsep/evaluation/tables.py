"""Results as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..data import STEMS
from .metrics import BANDS

COLUMNS = {  # metric -> heading -> key of the aggregates
    "v4": {"SDR": "sdr", "SIR": "sir", "ISR": "isr", "SAR": "sar", "SDR heard": "heard_sdr"},
    "sdr": {"mean SDR": "mean", "median": "median"},
    "nsdr": {"GNSDR": "gnsdr", "GSIR": "gsir", "GSAR": "gsar", "mean NSDR": "nsdr_mean", "median": "nsdr_median"},
    "band": {f"{band} {how}": f"{band}_{how}" for band in BANDS for how in ("mean", "median")},
}


def table(results: dict[str, Any]) -> str:
    """A paragraph a metric, with what it is, and a row a model and stem; all in dB."""
    return "\n\n".join("\n".join(_paragraph(results, metric)) for metric in results["metrics"])


def _paragraph(results: dict[str, Any], metric: str) -> Iterator[str]:
    columns, options, models = COLUMNS[metric], results["options"], results["models"]
    name_width = max([len("model"), *map(len, models)])
    yield f"{metric}: {results['metrics'][metric]}"
    if metric == "nsdr":
        levels = "vocals and accompaniment of each at 0 dB" if options["equal_levels"] else "levels as in the songs"
        yield f"pieces of {options['piece_s']:g} s, {levels}"
    widths = {heading: max(8, len(heading) + 2) for heading in columns}
    headings = "".join(f"{heading:>{width}}" for heading, width in widths.items())
    yield f"{'model':{name_width}}  {'stem':13}{headings}  {'scored'}"
    for name, model in models.items():
        for stem in STEMS:
            row = model["aggregates"][metric][stem]
            values = "".join(
                f"{'-' if row[key] is None else format(row[key], '.2f'):>{widths[heading]}}"
                for heading, key in columns.items()
            )
            yield f"{name:{name_width}}  {stem:13}{values}  {_scored(row)}"


def _scored(row: dict[str, Any]) -> str:
    """How much of what there is has a score: "12 of 13 songs"."""

    def share(what: str, prefix: str = "") -> str:
        there = row[f"{prefix}{what}"]
        return f"{there - row[f'{prefix}undefined_{what}']} of {there}"

    if "low_songs" in row:
        return ", ".join(share("songs", f"{band}_") for band in BANDS) + " songs"
    shares = [f"{share(what)} {what}" for what in ("songs", "pieces", "frames") if what in row]
    return ", ".join(shares) + (f", {row['heard_frames']} heard" if "heard_frames" in row else "")
