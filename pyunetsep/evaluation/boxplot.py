"""Results as a picture. Needs matplotlib (`pyunetsep[plot]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..audio.files import file_error
from ..data import STEMS
from ..plot import figure_class
from ..song_files import StrPath
from .aggregates import box_values

TITLES = {
    "v4": "BSS Eval v4 SDR, a song's median",
    "sdr": "SDR of a whole song",
    "nsdr": "NSDR of a piece, BSS Eval v3, 8192 Hz",
    "band": "improvement below 4096 Hz, a song",
}
COLOURS = dict(zip(STEMS, ("tab:orange", "tab:blue"), strict=True))


def check_plot(path: StrPath) -> None:
    """What would keep `box_plot` from writing this file is found out before the work.

    Raises:
        ImportError: matplotlib is missing. ValueError: it does not know the extension. AudioFileError: no such folder.
    """
    figure = figure_class()()
    known = figure.canvas.get_supported_filetypes()
    path = Path(path)
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"{path}: pictures can be {', '.join(sorted(known))}")
    if not path.parent.is_dir():
        raise file_error(str(path), f"there is no folder {path.parent}")


def box_plot(results: dict[str, Any], path: StrPath) -> None:
    """Draws a panel a metric with a box a model and stem: quartiles, whiskers to 1.5 times their distance, outliers.

    Args:
        results: of `evaluate`.
        path: of the picture; its extension chooses the format.
    Raises:
        ImportError: matplotlib is missing. AudioFileError: the file cannot be written.
    """
    metrics, models = list(results["metrics"]), results["models"]
    figure = figure_class()(figsize=(1.5 + 3.5 * len(metrics), 2.5 + 0.5 * len(models)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for i, stem in enumerate(STEMS):
            values = [box_values(list(model["songs"].values()), metric, stem) for model in models.values()]
            boxes = panel.boxplot(
                values,
                positions=[row + 0.2 * (2 * i - 1) for row in range(len(models))],
                widths=0.32,
                orientation="horizontal",
                patch_artist=True,
                manage_ticks=False,
                medianprops={"color": "black"},
                flierprops={"markersize": 3},
            )
            for box in boxes["boxes"]:
                box.set_facecolor(COLOURS[stem])
            panel.plot([], [], color=COLOURS[stem], linewidth=6, label=stem)
        panel.set_title(TITLES[metric], fontsize=9, loc="left")
        panel.set_xlabel("dB")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(models)), list(models))
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    try:
        figure.savefig(path)
    except OSError as error:
        raise file_error(str(path), error) from None
