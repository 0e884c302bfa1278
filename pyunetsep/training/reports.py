"""What a run leaves behind for people: a log, curves, and something to listen to."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing, write_atomically
from ..audio import AudioFormat, AudioWriter
from ..separator import Separator

LISTENING = AudioFormat("WAV", "FLOAT")
DPI = 100


class Log:
    """A file of JSON lines, one an event; a run that goes on drops those that it is about to repeat."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.events = [event for event in _events(path) if event["step"] <= step]
        text = "".join(json.dumps(event) + "\n" for event in self.events)
        write_atomically(path, text.encode())

    def write(self, **event: Any) -> None:
        event = {name: _finite(value) for name, value in event.items()}
        self.events.append(event)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _events(path: Path) -> list[dict[str, Any]]:
    """Of an interrupted run's log, whose last line may be cut."""
    events = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("step"), int):
                    events.append(event)
    return events


def plot_curves(events: list[dict[str, Any]], path: Path) -> None:
    """Draws losses and validation scores over the steps. Needs matplotlib.

    Raises:
        ImportError: it is missing.
    """
    from matplotlib.figure import Figure

    losses = [event for event in events if "loss" in event]
    scores = [event for event in events if "nsdr_db" in event]
    figure = Figure(figsize=(9.0, 6.0), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axis, kind, entries in ((above, "loss", losses), (below, "nsdr_db", scores)):
        for name in entries[0][kind] if entries else []:
            steps = [event["step"] for event in entries]
            values = [math.nan if event[kind][name] is None else event[kind][name] for event in entries]
            marker = "." if kind != "loss" or len(values) == 1 else ""  # a single point makes no line
            axis.plot(steps, values, label=name, marker=marker)
        axis.grid(alpha=0.3)
        if entries:
            axis.legend(loc="best", frameon=False)
    above.set_yscale("log")
    above.set_title("training loss", loc="left", fontsize=11)
    below.set_title("validation: signal-to-distortion ratio over that of the mixture, dB", loc="left", fontsize=11)
    below.set_xlabel("step")
    with replacing(path) as file:
        figure.savefig(file, format="png")


def write_example(separator: Separator, mixture: np.ndarray, folder: Path) -> None:
    """Separates a mixture [channels, samples] at the model's rate and writes it next to its stems, to listen to."""
    rate_hz = separator.model.spectrogram.sample_rate_hz
    folder.mkdir(parents=True, exist_ok=True)
    stems: Mapping[str, np.ndarray] = {
        "mixture": mixture,
        **{name: wave.T for name, wave in separator(mixture.T, rate_hz).items()},
    }
    for name, wave in stems.items():
        channels, samples = wave.shape
        with AudioWriter(
            folder / f"{name}.wav",
            sample_rate_hz=rate_hz,
            channels=channels,
            samples=samples,
            format=LISTENING,
            overwrite=True,
        ) as writer:
            writer.write(np.ascontiguousarray(wave, np.float32))
            writer.commit()
