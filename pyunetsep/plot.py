"""Pictures: spectrograms of a song and its stems, with the mask between them. Needs matplotlib (`pyunetsep[plot]`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from . import ops
from .atomic import replacing
from .audio import AudioReader, Wave
from .audio.files import file_error
from .errors import OutputExistsError
from .song_files import StrPath

N_FFT = 4096
HOP = N_FFT // 4
FLOOR_DB = -80.0
LOWEST_KHZ, HIGHEST_KHZ = 0.06, 16.0
WIDTH_IN, HEIGHT_IN, DPI = 11.0, 6.2, 90
COLUMNS = round(WIDTH_IN * DPI)  # no more than the picture has pixels
STRIP_ROWS = 160
READ_SAMPLES = 1 << 16
FORMATS = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "pdf", "svg")


class Spectrogram:
    """How loud a song is over time and frequency, in memory that does not grow with the song.

    Each of the at most `COLUMNS` columns is the mean power of all frames in its time: nothing is skipped.

    Args:
        samples: of the song, all of which `push` must get.
        sample_rate_hz: of the song.
    """

    def __init__(self, samples: int, sample_rate_hz: int) -> None:
        self.samples, self.sample_rate_hz = samples, sample_rate_hz
        self.frames = 1 + samples // HOP
        self.columns = min(self.frames, COLUMNS)
        self._window = torch.hann_window(N_FFT)
        self._power = torch.zeros(N_FFT // 2 + 1, self.columns)
        self._pending = torch.zeros(N_FFT // 2)  # the first frame is centred on the first sample
        self._pushed, self._done = 0, 0  # samples, frames

    def push(self, wave: Wave) -> None:
        """Takes the song's next samples: [channels, samples], averaged over channels; NaN and infinity are silence."""
        self._pushed += wave.shape[1]
        mono = np.nan_to_num(wave.mean(0, dtype=np.float32), posinf=0.0, neginf=0.0)
        for block in torch.from_numpy(mono).split(READ_SAMPLES):
            self._take(block)

    def magnitude(self) -> torch.Tensor:
        """[bins, columns], once all samples are there."""
        if self._pushed != self.samples:
            raise ValueError(f"{self.samples} samples were announced, {self._pushed} came")
        if self._done < self.frames:
            self._take(torch.zeros(N_FFT // 2))
        frames_of = torch.bincount(self._column(torch.arange(self.frames)), minlength=self.columns)
        return (self._power / frames_of).sqrt()

    def _take(self, mono: torch.Tensor) -> None:
        wave = torch.cat([self._pending, mono])
        frames = max(0, 1 + (len(wave) - N_FFT) // HOP)
        if frames:
            spectrum = torch.stft(wave, N_FFT, HOP, window=self._window, center=False, return_complex=True)
            at = torch.arange(self._done, self._done + frames)
            self._power.index_add_(1, self._column(at), spectrum.abs().square())
        self._pending, self._done = wave[frames * HOP :].clone(), self._done + frames

    def _column(self, frame: torch.Tensor) -> torch.Tensor:
        return frame * self.columns // self.frames


def read_spectrogram(
    path: StrPath,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    on_block: Callable[[], object] | None = None,
) -> Spectrogram:
    """The spectrogram of a file, read block by block.

    Args:
        path: any file that `AudioReader` reads.
        start_s, duration_s: the part of it.
        on_block: called after each block; what it raises ends the reading.
    Raises:
        AudioFileError, ValueError: as `AudioReader`.
    """
    with AudioReader(path, start_s=start_s, duration_s=duration_s) as reader:
        spectrogram = Spectrogram(reader.samples, reader.sample_rate_hz)
        for block in reader.blocks(READ_SAMPLES):
            spectrogram.push(block)
            if on_block:
                on_block()
    return spectrogram


def check_picture(path: StrPath, *, overwrite: bool = True) -> None:
    """What would keep a picture from being written is found out before the work.

    Raises:
        ImportError: matplotlib is missing. ValueError: the extension is none of `FORMATS`. AudioFileError: no such
        folder, or `path` is one. OutputExistsError: `path` exists and may not be replaced.
    """
    figure_class()
    path = Path(path)
    if path.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"{path}: pictures can be {', '.join(FORMATS)}; the name's extension chooses")
    if not path.parent.is_dir():
        raise file_error(str(path), f"there is no folder {path.parent}")
    if path.is_dir():
        raise file_error(str(path), "is a folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists already; see overwrite")


def plot_stems(
    mixture: np.ndarray, stems: Mapping[str, np.ndarray], sample_rate_hz: int, path: StrPath, *, title: str = ""
) -> None:
    """Draws the mixture, the first stem's share of it, and the stems, as log-frequency spectrograms.

    Args:
        mixture: (samples,) or (samples, channels); channels are averaged.
        stems: arrays of the same shape.
        path: of the picture, which is replaced; its extension, one of `FORMATS`, chooses the format.
        title: above all.
    Raises:
        As `check_picture`, and AudioFileError: the picture cannot be written.
    """

    def spectrogram(wave: np.ndarray) -> Spectrogram:
        made = Spectrogram(len(wave), sample_rate_hz)
        made.push(np.reshape(wave, (len(wave), -1)).T)
        return made

    draw_picture(spectrogram(mixture), {name: spectrogram(wave) for name, wave in stems.items()}, path, title=title)


def draw_picture(mixture: Spectrogram, stems: Mapping[str, Spectrogram], path: StrPath, *, title: str = "") -> None:
    """`plot_stems` from spectrograms."""
    check_picture(path)
    magnitudes = {name: made.magnitude() for name, made in {"mixture": mixture, **stems}.items()}
    first = next(iter(stems))
    mask = ops.ratio_mask(torch.stack([magnitudes[name] for name in stems]))[0]

    figure = figure_class()(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    frequencies = np.fft.rfftfreq(N_FFT, 1 / mixture.sample_rate_hz) / 1000
    times = np.linspace(0, mixture.samples / mixture.sample_rate_hz, mixture.columns)

    def draw(axis: Any, title: str, values: torch.Tensor, **style: Any) -> Any:
        mesh = axis.pcolormesh(times, frequencies[1:], values[1:].numpy(), shading="nearest", rasterized=True, **style)
        axis.set_title(title, loc="left", fontsize=11)
        return mesh

    level = {"cmap": "magma", "vmin": FLOOR_DB, "vmax": 0.0}
    reference = magnitudes["mixture"].max()
    mesh = draw(axes[0, 0], "mixture", _decibels(magnitudes["mixture"], reference), **level)
    mask_mesh = draw(axes[0, 1], f"mask of the {first}", mask, cmap="viridis", vmin=0.0, vmax=1.0)
    for axis, name in zip(axes[1], list(stems)[:2], strict=False):
        draw(axis, name, _decibels(magnitudes[name], reference), **level)
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.set_ylim(LOWEST_KHZ, min(HIGHEST_KHZ, mixture.sample_rate_hz / 2000))
        axis.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
        axis.set_yticks([], minor=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("kHz")
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    figure.colorbar(mask_mesh, ax=axes[0], label="share", pad=0.01)
    figure.colorbar(mesh, ax=axes[1], label="dB", pad=0.01)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    _write(path, lambda file: figure.savefig(file, format=Path(path).suffix[1:].lower()))


def draw_strip(song: Spectrogram, mixture: Spectrogram, path: StrPath) -> None:
    """Draws one bare log-frequency spectrogram as PNG, without axes: a column of pixels a column of `song`.

    Rows go from `LOWEST_KHZ` at the bottom to `HIGHEST_KHZ`, or half the sample rate. Levels are as in `draw_picture`.
    """
    figure_class()
    from matplotlib import colormaps, image

    highest_khz = min(HIGHEST_KHZ, song.sample_rate_hz / 2000)
    edges = np.geomspace(min(LOWEST_KHZ, highest_khz / 2), highest_khz, STRIP_ROWS + 1) * 1000 * N_FFT
    edges = edges / song.sample_rate_hz  # in bins
    magnitude = song.magnitude()
    # the power up to each edge, between the bins' own edges by straight lines: rows may be finer or coarser than bins
    up_to = np.vstack([np.zeros(song.columns), magnitude.square().double().cumsum(0).numpy()])
    bins = np.floor(edges + 0.5).astype(int).clip(0, len(up_to) - 2)
    at_edges = up_to[bins] + (edges + 0.5 - bins)[:, None] * (up_to[bins + 1] - up_to[bins])
    power = np.diff(at_edges, axis=0) / np.diff(edges)[:, None]
    level = _decibels(torch.from_numpy(power.clip(0)).sqrt(), mixture.magnitude().max()).numpy()
    picture = colormaps["magma"](np.clip(1 - level[::-1] / FLOOR_DB, 0, 1), bytes=True)
    _write(path, lambda file: image.imsave(file, picture[..., :3], format="png"))


def _decibels(magnitude: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Relative to `reference`; digital silence is -240 dB."""
    return 20 * torch.log10(magnitude / reference.clamp(min=1e-9) + 1e-12)


def _write(path: StrPath, save: Callable[[BinaryIO], object]) -> None:
    try:
        with replacing(Path(path)) as file:
            save(file)
    except OSError as error:
        raise file_error(os.fspath(path), error) from None


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        ImportError: it is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pyunetsep[plot]'") from error
    return Figure
