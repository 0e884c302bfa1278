"""Scores of songs -> scores of a model. What is not defined is left out, and counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..data import STEMS
from .metrics import BANDS, V4_SCORES

Aggregates = dict[str, dict[str, dict[str, Any]]]  # metric -> stem -> name -> number


def aggregates(songs: Sequence[dict[str, Any]], metrics: Iterable[str]) -> Aggregates:
    """Args: `songs`: reports of `score_song`, with NaN or None where a score is not defined."""
    how = {"v4": _v4, "sdr": _sdr, "nsdr": _nsdr, "band": _band}
    return {metric: {stem: how[metric]([song[metric] for song in songs], stem) for stem in STEMS} for metric in metrics}


def box_values(songs: Sequence[dict[str, Any]], metric: str, stem: str) -> np.ndarray:
    """What a box plot of a metric shows: a value a song, or a piece, that is defined."""
    rows = _stem_rows([song[metric] for song in songs], stem)
    return _defined(row[{"v4": "sdr", "sdr": "sdr", "nsdr": "nsdr", "band": "low"}[metric]] for row in rows)


def _v4(songs: list[Any], stem: str) -> dict[str, Any]:
    rows = _stem_rows(songs, stem)
    return {
        **{name: _of(np.median, _defined(row[name] for row in rows)) for name in (*V4_SCORES, "heard_sdr")},
        **_counts(row["sdr"] for row in rows),
        **{name: sum(row[name] for row in rows) for name in ("frames", "undefined_frames", "heard_frames")},
    }


def _sdr(songs: list[Any], stem: str) -> dict[str, Any]:
    values = [row["sdr"] for row in _stem_rows(songs, stem)]
    return {
        "mean": _of(np.mean, _defined(values)),
        "median": _of(np.median, _defined(values)),
        **_counts(values),
    }


def _nsdr(songs: list[Any], stem: str) -> dict[str, Any]:
    """GNSDR, GSIR, GSAR are means over pieces weighted by length. Source: Huang et al., ISMIR 2014."""
    pieces = [piece for song in songs for piece in song]
    seconds = np.array([piece["duration_s"] for piece in pieces], float)

    def weighted(name: str) -> float:
        values = _floats(piece[stem][name] for piece in pieces)
        defined = ~np.isnan(values)
        return float(np.average(values[defined], weights=seconds[defined])) if defined.any() else math.nan

    improvements = [piece[stem]["nsdr"] for piece in pieces]
    return {
        "gnsdr": weighted("nsdr"),
        "gsir": weighted("sir"),
        "gsar": weighted("sar"),
        "nsdr_mean": _of(np.mean, _defined(improvements)),
        "nsdr_median": _of(np.median, _defined(improvements)),
        **_counts(improvements, "pieces"),
    }


def _band(songs: list[Any], stem: str) -> dict[str, Any]:
    rows = _stem_rows(songs, stem)
    made: dict[str, Any] = {}
    for name in BANDS:
        values = [row[name] for row in rows]
        made[f"{name}_mean"] = _of(np.mean, _defined(values))
        made[f"{name}_median"] = _of(np.median, _defined(values))
        made |= {f"{name}_{key}": value for key, value in _counts(values).items()}
    return made


def _stem_rows(songs: Iterable[Any], stem: str) -> list[dict[str, Any]]:
    """Of songs, or of their pieces where that is what they have."""
    return [part[stem] for song in songs for part in (song if isinstance(song, list) else [song])]


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], float)


def _defined(values: Iterable[float | None]) -> np.ndarray:
    numbers = _floats(values)
    return numbers[~np.isnan(numbers)]


def _of(statistic: Any, values: np.ndarray) -> float:
    return float(statistic(values)) if values.size else math.nan


def _counts(values: Iterable[float | None], what: str = "songs") -> dict[str, int]:
    numbers = _floats(values)
    return {what: len(numbers), f"undefined_{what}": int(np.isnan(numbers).sum())}
