"""Pictures: spectrograms of a song and its stems, with the mask between them. Needs matplotlib (`pyunetsep[plot]`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from . import ops

N_FFT = 4096
FLOOR_DB = -80.0
WIDTH_IN, HEIGHT_IN, DPI = 11.0, 6.2, 90


def plot_stems(
    mixture: np.ndarray, stems: Mapping[str, np.ndarray], sample_rate_hz: int, path: str | os.PathLike[str]
) -> None:
    """Draws the mixture, the first stem's share of it, and the stems, as log-frequency spectrograms.

    Args:
        mixture: (samples,) or (samples, channels); channels are averaged.
        stems: arrays of the same shape.
        path: of the picture; its extension chooses the format, as matplotlib does.
    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pyunetsep[plot]'") from error

    columns = round(WIDTH_IN * DPI)
    hop = max(N_FFT // 4, len(mixture) // columns)  # no more frames than the picture has pixels
    magnitudes = {name: _magnitude(wave, hop) for name, wave in {"mixture": mixture, **stems}.items()}
    reference = magnitudes["mixture"].max().clamp(min=1e-9)
    first = next(iter(stems))
    masks = ops.ratio_mask(torch.stack([magnitudes[name] for name in stems]))

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    seconds = len(mixture) / sample_rate_hz
    frequencies = np.fft.rfftfreq(N_FFT, 1 / sample_rate_hz) / 1000
    times = np.linspace(0, seconds, magnitudes["mixture"].shape[1])

    def draw(axis: Any, title: str, values: np.ndarray, **style: Any) -> Any:
        mesh = axis.pcolormesh(times, frequencies[1:], values[1:], shading="nearest", rasterized=True, **style)
        axis.set_title(title, loc="left", fontsize=11)
        return mesh

    def decibels(name: str) -> np.ndarray:
        level: np.ndarray = (20 * torch.log10(magnitudes[name] / reference + 1e-12)).numpy()
        return level

    level = {"cmap": "magma", "vmin": FLOOR_DB, "vmax": 0.0}
    mesh = draw(axes[0, 0], "mixture", decibels("mixture"), **level)
    mask_mesh = draw(axes[0, 1], f"mask of the {first}", masks[0].numpy(), cmap="viridis", vmin=0.0, vmax=1.0)
    for axis, name in zip(axes[1], list(stems)[:2], strict=False):
        draw(axis, name, decibels(name), **level)
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.set_ylim(0.06, min(16.0, sample_rate_hz / 2000))
        axis.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axis.set_yticks([], minor=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("kHz")
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    figure.colorbar(mask_mesh, ax=axes[0], label="share", pad=0.01)
    figure.colorbar(mesh, ax=axes[1], label="dB", pad=0.01)
    figure.savefig(path)


def _magnitude(wave: np.ndarray, hop: int) -> torch.Tensor:
    mono = torch.from_numpy(np.asarray(wave, np.float32).reshape(len(wave), -1).mean(1))
    window = torch.hann_window(N_FFT)
    return torch.stft(mono, N_FFT, hop, window=window, pad_mode="constant", return_complex=True).abs()
