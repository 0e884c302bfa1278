"""One song, one estimator: all scores that were asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..audio import Wave
from . import metrics
from .estimators import Estimator
from .song import STEMS, Song, mono, piece_slices, resampled

Report = dict[str, Any]  # of plain JSON types
Step = Callable[[str], object]  # is told what comes next


@dataclass(frozen=True)
class ScoringOptions:
    """What is scored, and how.

    Attributes:
        metrics: names of `METRICS`.
        piece_s: length of the pieces that `nsdr` is computed in.
        equal_levels: `nsdr` mixes vocals and accompaniment of each piece at 0 dB, and separates that mixture.
        exact: models run as their authors have it, see `pyunetsep.separate`.
    Raises:
        ValueError: an unknown metric, or none; a piece below 1 s; levels that no metric minds.
    """

    metrics: tuple[str, ...] = tuple(metrics.METRICS)
    piece_s: float = 10.0
    equal_levels: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in metrics.METRICS]
        if unknown or not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics must be of {', '.join(metrics.METRICS)}, each once; got {self.metrics!r}")
        if not 1 <= self.piece_s < math.inf:
            raise ValueError(f"piece_s must be 1 second or more, got {self.piece_s}")
        if self.equal_levels and "nsdr" not in self.metrics:
            raise ValueError("equal_levels is for the metric nsdr, which was not asked for")
        # in one order, so that the same choice is the same options
        object.__setattr__(self, "metrics", tuple(name for name in metrics.METRICS if name in self.metrics))

    @property
    def whole_songs(self) -> bool:
        """Whether any metric needs the song separated as a whole."""
        return self.metrics != ("nsdr",) or not self.equal_levels


def score_song(song: Song, estimator: Estimator, options: ScoringOptions, step: Step = lambda what: None) -> Report:
    """{metric: its scores}; NaN where one is not defined."""
    whole: Mapping[str, Wave] = {}
    if options.whole_songs:
        step("separating")
        whole = estimator.estimate(song)
    report: Report = {}
    for name in options.metrics:
        step(name)
        if name == "v4":
            report[name] = metrics.v4(song, whole)
        elif name == "sdr":
            report[name] = metrics.sdr(song, whole)
        elif name == "band":
            report[name] = metrics.band(song, whole)
        else:
            report[name] = [
                {"start_s": start_s, "duration_s": piece.duration_s, **metrics.nsdr(piece, estimates)}
                for start_s, piece, estimates in _pieces(song, estimator, whole, options)
            ]
    return report


def _pieces(
    song: Song, estimator: Estimator, whole: Mapping[str, Wave], options: ScoringOptions
) -> Iterator[tuple[float, Song, Mapping[str, Wave]]]:
    """Pieces at 8192 Hz, mono, with their estimates: (start in seconds, piece, estimates)."""
    rate_hz = metrics.V3_RATE_HZ

    def at_rate(estimates: Mapping[str, Wave], from_hz: int) -> dict[str, Wave]:
        return {stem: resampled(mono(estimates[stem]), from_hz, rate_hz) for stem in STEMS}

    if options.equal_levels:
        for where in piece_slices(song.samples, song.sample_rate_hz, options.piece_s):
            piece = song.part(where)
            start_s = where.start / song.sample_rate_hz
            if piece.silent_stems:  # nothing can be level with it
                yield start_s, piece, {}
                continue
            piece = piece.levelled()
            scored = piece.mono_at(rate_hz)
            if estimator.yardstick:
                yield start_s, scored, estimator.estimate(scored)
            else:
                yield start_s, scored, at_rate(estimator.estimate(piece), piece.sample_rate_hz)
        return
    scored = song.mono_at(rate_hz)
    estimates = estimator.estimate(scored) if estimator.yardstick else at_rate(whole, song.sample_rate_hz)
    for where in piece_slices(scored.samples, rate_hz, options.piece_s):
        yield where.start / rate_hz, scored.part(where), {stem: wave[:, where] for stem, wave in estimates.items()}
