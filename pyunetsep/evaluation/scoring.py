"""One song: all scores that were asked for, of one estimator after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..audio import Wave
from . import metrics
from .estimators import Estimator
from .song import Song, mono, piece_slices, resampled

Report = dict[str, Any]  # of plain JSON types
Step = Callable[[str], object]  # is told what comes next


WHOLE_SONG = {"v4": metrics.v4, "sdr": metrics.sdr, "band": metrics.band}


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


@dataclass(frozen=True)
class Piece:
    """Some seconds of a song, as `nsdr` scores them."""

    where: slice  # in samples of what is separated: the song, or with its own levels the song at 8192 Hz
    start_s: float
    scored: Song  # mono, at 8192 Hz

    @cached_property
    def mixture_sdr(self) -> list[float]:
        return metrics.mixture_sdr(self.scored)


class Scorer:
    """A song, and what all estimators' scores of it have in common."""

    def __init__(self, song: Song, options: ScoringOptions) -> None:
        self.song, self.options = song, options

    def score(self, estimator: Estimator, step: Step = lambda what: None) -> Report:
        """{metric: its scores of this estimator}; NaN where one is not defined. A list of pieces for `nsdr`."""
        whole: Mapping[str, Wave] = {}
        if self.options.whole_songs:
            step("separating")
            whole = estimator.estimate(self.song)
        report: Report = {}
        for name in self.options.metrics:
            step(name)
            if name == "nsdr":
                report[name] = [
                    {
                        "start_s": piece.start_s,
                        "duration_s": piece.scored.duration_s,
                        **metrics.nsdr(piece.scored, estimates, piece.mixture_sdr),
                    }
                    for piece, estimates in self._estimated_pieces(estimator, whole)
                ]
            else:
                report[name] = WHOLE_SONG[name](self.song, whole)
        return report

    @cached_property
    def pieces(self) -> list[Piece]:
        song, rate_hz, piece_s = self.song, metrics.V3_RATE_HZ, self.options.piece_s
        if self.options.equal_levels:
            parts = [(where, song.part(where)) for where in piece_slices(song.samples, song.sample_rate_hz, piece_s)]
            return [
                Piece(
                    where,
                    where.start / song.sample_rate_hz,
                    (part if part.silent_stems else part.levelled()).mono_at(rate_hz),
                )
                for where, part in parts
            ]
        scored = song.mono_at(rate_hz)
        return [
            Piece(where, where.start / rate_hz, scored.part(where))
            for where in piece_slices(scored.samples, rate_hz, piece_s)
        ]

    def _estimated_pieces(
        self, estimator: Estimator, whole: Mapping[str, Wave]
    ) -> Iterator[tuple[Piece, Mapping[str, Wave]]]:
        """Each piece with its estimates, mono, at 8192 Hz."""
        song, pieces = self.song, self.pieces
        if estimator.yardstick or self.options.equal_levels:
            for piece in pieces:
                if piece.scored.silent_stems:  # nothing to score, and nothing that could be levelled
                    yield piece, {}
                elif estimator.yardstick:
                    yield piece, estimator.estimate(piece.scored)
                else:
                    heard = song.part(piece.where).levelled()
                    yield piece, _as_scored(estimator.estimate(heard), song.sample_rate_hz)
        else:
            estimates = _as_scored(whole, song.sample_rate_hz)
            for piece in pieces:
                yield piece, {stem: wave[:, piece.where] for stem, wave in estimates.items()}


def _as_scored(estimates: Mapping[str, Wave], sample_rate_hz: int) -> dict[str, Wave]:
    return {stem: resampled(mono(wave), sample_rate_hz, metrics.V3_RATE_HZ) for stem, wave in estimates.items()}
