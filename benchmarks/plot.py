"""Draws docs/images/speed.png from the results: how long the networks and a whole song take on each engine.

And training-step.png, how long a step of training takes; and the same of a GPU, speed-gpu.png and
training-step-gpu.png, where its results are there.

python benchmarks/plot.py
"""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from published import OURS, ROOT, a, by_mode, load, load_gpu, load_if_measured, patches, seconds, title

OUR_COLOUR, PEER_COLOUR = "#c2410c", "#a8b0ba"
PANELS = {"jansson2017": 0, "spleeter": 1}  # columns; the last is the whole song's


def bars(axes: Axes, heading: str, runs: dict[str, Any]) -> None:
    """One bar an engine, from 0 and linear, so that lengths compare; a whisker spans the quartiles."""
    names = list(runs)
    medians = [runs[name]["median_s"] for name in names]
    below = [median - runs[name]["quartile_1_s"] for name, median in zip(names, medians, strict=True)]
    above = [runs[name]["quartile_3_s"] - median for name, median in zip(names, medians, strict=True)]
    colours = [OUR_COLOUR if name.startswith(OURS) else PEER_COLOUR for name in names]
    whiskers = {"ecolor": "#4b5563", "elinewidth": 1}
    axes.barh([title(name) for name in names], medians, xerr=(below, above), color=colours, error_kw=whiskers)
    longest = max(runs[name]["quartile_3_s"] for name in names)
    for row, name in enumerate(names):
        label = seconds(runs[name]["median_s"])
        if "share_of_peak" in runs[name]:
            label += f"  {runs[name]['share_of_peak']:.0%}"
        axes.text(
            runs[name]["quartile_3_s"] + 0.02 * longest, row, label, va="center", fontsize=8,
            fontweight="bold" if name.startswith(OURS) else "normal",
        )  # fmt: skip
    axes.set_title(heading, fontsize=10, loc="left")
    axes.set_xlim(0, 1.42 * longest)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def gpu(networks: Any, songs: Any) -> None:
    """A row a model, a column a number of patches, and the whole song on the GPU."""
    rows = networks["results"]["networks"]
    batches, models = ([*dict.fromkeys(row[key] for row in rows)] for key in ("patches", "model"))
    figure, grid = pyplot.subplots(len(models), len(batches) + 1, figsize=(4.5 * len(batches) + 4.5, 6), squeeze=False)
    for row in rows:
        place = models.index(row["model"]), batches.index(row["patches"])
        bars(grid[place], f"{title(row['model']).capitalize()}s, {patches(row['patches'])}", row["engines"])
    for song in songs["results"]["songs"]:
        axes = grid[models.index(song["model"]), -1]
        bars(axes, f"A song of {songs['results']['seconds'] / 60:.2g} min, on the GPU", song["on the GPU"])
    figure.text(
        0.01, 0.01,
        f"Medians of alternating runs and their quartiles, both stems, one {networks['context']['gpu']}; shorter is "
        "better. Per cent: of the peak of the precision, counting what the convolutions take by definition.",
        fontsize=8, color="#4b5563",
    )  # fmt: skip
    save(figure, "speed-gpu.png")


def training(data: Any, name: str) -> None:
    """A row a preset, a column a batch."""
    cells, context = data["results"]["cells"], data["context"]
    presets, batches = ([*dict.fromkeys(cell[key] for cell in cells)] for key in ("preset", "batch"))
    rivals = max(len(cell["steps"]) for cell in cells)
    size = max(7, 5 * len(batches)), (0.6 + 0.24 * rivals) * len(presets) + 0.4
    figure, grid = pyplot.subplots(len(presets), len(batches), figsize=size, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)  # but where something was measured
    for cell in cells:
        axes = grid[presets.index(cell["preset"]), batches.index(cell["batch"])]
        axes.set_visible(True)
        bars(axes, f"{title(cell['preset']).capitalize()}, {cell['batch']} examples", cell["steps"])
    where = (
        f"one {context['gpu']}" if context["gpu"] else f"{data['results']['threads']} threads of {a(context['cpu'])}"
    )
    figure.text(
        0.01, 0.01,
        f"A step of training: medians of alternating runs and their quartiles, {where}; shorter is better.\n"
        "Per cent: of the peak, counting what the convolutions and their gradients take by definition.",
        fontsize=8, color="#4b5563",
    )  # fmt: skip
    save(figure, name)


def save(figure: Figure, name: str) -> None:
    figure.tight_layout(rect=(0, 0.05, 1, 1), w_pad=2.0)
    path = ROOT / "docs" / "images" / name
    figure.savefig(path, dpi=110)
    print(path)


def main() -> None:
    on_gpu = load_gpu("unet_cuda"), load_gpu("separate_cuda")
    if None not in on_gpu:
        gpu(*on_gpu)
    steps = {"training-step.png": load_if_measured("training_step_cpu"),
             "training-step-gpu.png": load_gpu("training_step_cuda")}  # fmt: skip
    for name, data in steps.items():
        if data is not None:
            training(data, name)
    networks, songs = load("unet_cpu"), load("separate_cpu")
    threads = max(row["threads"] for row in networks["results"]["networks"])
    rows = [row for row in networks["results"]["networks"] if row["threads"] == threads]
    batches = sorted({row["patches"] for row in rows})
    figure, grid = pyplot.subplots(max(2, len(batches)), 3, figsize=(13, 4.5))
    for row in rows:
        heading = f"{title(row['model']).capitalize()}, {patches(row['patches'])}"
        bars(grid[batches.index(row["patches"]), PANELS[row["model"]]], heading, row["engines"])
    minutes = songs["results"]["seconds"] / 60
    song = f"A song of {minutes:.2g} min"
    bars(grid[0, 2], f"{song}, array to stems", by_mode(songs["results"]["array"], exact=False))
    bars(grid[1, 2], f"{song}, as Spleeter does it", by_mode(songs["results"]["array"], exact=True))
    peak, cpu = networks["results"]["peak_gflops"][str(threads)], a(networks["context"]["cpu"])
    figure.text(
        0.01, 0.01,
        f"Medians of alternating runs and their quartiles, {threads} threads of {cpu}; shorter "
        f"is better. Per cent: of the {peak:.0f} GFLOP/s that its multiply-adds reach, counting what the convolutions "
        "take by definition.",
        fontsize=8, color="#4b5563",
    )  # fmt: skip
    save(figure, "speed.png")


if __name__ == "__main__":
    main()
