"""Rewrites the README's tables, between their markers, from the results; no figure there is typed by hand.

python benchmarks/readme.py
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def speed() -> str:
    data = load("separate_cpu")
    context, results = data["context"], data["results"]
    rows = "\n".join(
        f"| {name} | {run['median_s']:.1f} s ({run['min_s']:.1f} to {run['max_s']:.1f}) "
        f"| {run['times_real_time']:.0f} |"
        for name, run in results["runs"].items()
    )
    return (
        f"Array to stems, {results['seconds']:.0f} s of stereo, median (and extremes) of alternating runs on "
        f"{context['threads']} threads of {_a(context['cpu'])}, torch {context['torch']};\n"
        f"peak memory {results['peak_gib']:.1f} GiB:\n\n"
        f"| mode | time | times real time |\n| --- | --- | --- |\n{rows}"
    )


def kernels() -> str:
    runs = {run["name"]: run["stats"] for run in load("ops_cpu")["benchmarks"]}
    rows = []
    for op in ("ratio_mask", "overlap_add"):
        kernel, plain = (runs[f"test_{op}[{rival}-cpu]"] for rival in ("kernel", "plain PyTorch"))
        times = " | ".join(
            f"{1e3 * stats['median']:.1f} ms (IQR {1e3 * stats['iqr']:.1f})" for stats in (kernel, plain)
        )
        rows.append(f"| `{op}` | {times} | {plain['median'] / kernel['median']:.1f} |")
    header = "| op, one block of a song | kernel, median | plain PyTorch | ratio |\n| --- | --- | --- | --- |\n"
    return header + "\n".join(rows)


def fidelity() -> str:
    results = load("fidelity")["results"]
    tensorflow, double = results["snr_against_tensorflow_db"], results["snr_against_float64_db"]
    rows = "\n".join(f"| {stem} | {tensorflow[stem]:.1f} dB | {double[stem]:.1f} dB |" for stem in tensorflow)
    worst = max(results["largest_error_of_the_sum"].values())
    rates = ", ".join(f"{int(rate) / 1000:g}" for rate in results["largest_error_of_the_sum"])
    return (
        f"| stem, `exact=True` | against TensorFlow Spleeter | against float64 |\n| --- | --- | --- |\n{rows}\n\n"
        f"In the default mode the stems add up to the song: at {rates} kHz the largest error "
        f"is {worst:.0e} of full scale."
    )


def extension() -> str:
    results = load("mask_extension")["results"]
    excerpts = next(iter(results.values()))["excerpts"]
    rows = "\n".join(
        f"| {name} | {row['sdr_below_11_khz_db']:.2f} dB | {row['sdr_above_11_khz_db']:.2f} dB |"
        for name, row in results.items()
    )
    return f"| highs, median of {excerpts} excerpts | vocals below 11 kHz | vocals above |\n| --- | --- | --- |\n{rows}"


def _a(name: str) -> str:
    return f"an {name}" if name[:1] in "AEIOU" else f"a {name}"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    for table in (speed, kernels, fidelity, extension):
        marker = table.__name__
        parts = re.split(rf"(?s)(?<=<!-- {marker} -->\n).*?(?=<!-- /{marker} -->)", text)
        if len(parts) != 2:
            raise SystemExit(f"README.md: want one pair of markers <!-- {marker} -->, found {len(parts) - 1}")
        text = parts[0] + table() + "\n" + parts[1]
    readme.write_text(text)


if __name__ == "__main__":
    main()
