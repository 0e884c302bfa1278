"""Which tracks are trained on, which are held out; a group (a singer, a song) is always on one side."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import DataError
from .tracks import Side, Track


@dataclass(frozen=True)
class Split:
    """Tracks to train on, to choose by, and to report."""

    train: tuple[Track, ...]
    validation: tuple[Track, ...]
    test: tuple[Track, ...]


def split_tracks(
    tracks: Iterable[Track], *, validation: Sequence[str] = (), test: Sequence[str] = (), share: float = 0.1
) -> Split:
    """Put each track on one side.

    What the patterns match goes where they say; the rest where the data itself says, or to training. If that leaves
    nothing for validation, a share of the groups with songs goes there, chosen by a hash of their names, so that more
    data moves none of them from one side to the other (but one that was alone there for want of a better).

    Args:
        validation, test: patterns, as a shell's ("mir1k_*"), of names of tracks or groups.
        share: of the groups with songs; 0 for none, else at least one as long as another is left to train on.
    Raises:
        TypeError: `validation` or `test` is a single string.
        DataError: a pattern matches nothing, or a group would be on two sides; the message names it.
        ValueError: `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share: got {share}, want a share from 0 up to, but not, 1")
    for name, wanted in (("validation", validation), ("test", test)):
        if isinstance(wanted, str):
            raise TypeError(f"{name}: got {wanted!r}, want a list of patterns")
    tracks = list(tracks)
    sides: dict[Track, Side] = {track: track.split or "train" for track in tracks}
    asked: dict[Track, Side] = {}
    patterns: dict[Side, Sequence[str]] = {"validation": validation, "test": test}
    for side in patterns:
        for pattern in patterns[side]:
            for track in matching_tracks(pattern, tracks):
                if asked.setdefault(track, side) != side:
                    raise DataError(f"{track.name}: asked for in validation and in test ({pattern!r} matches it)")
    sides.update(asked)
    if share and "validation" not in sides.values():
        groups = {track.group for track in tracks if track.kind == "song" and sides[track] == "train"}
        chosen = _chosen(groups, share)
        for track in tracks:
            if track.group in chosen and sides[track] == "train":
                sides[track] = "validation"
    _check_groups(sides)

    def on(side: str) -> tuple[Track, ...]:
        return tuple(track for track in tracks if sides[track] == side)

    return Split(on("train"), on("validation"), on("test"))


def matching_tracks(pattern: str, tracks: Sequence[Track]) -> list[Track]:
    """The tracks whose name, or group, is the pattern or matches it as a shell's ("mir1k_*").

    Raises:
        DataError: there are none; the message says what comes close.
    """

    def matches(name: str) -> bool:
        return name == pattern or fnmatchcase(name, pattern)  # "Song [live]" is a name as well as a pattern

    found = [track for track in tracks if matches(track.name) or matches(track.group)]
    if not found:
        names = sorted({track.name for track in tracks} | {track.group for track in tracks})
        close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.5)
        there = ", ".join(close or names[:5]) + ("" if close or len(names) <= 5 else f", ... ({len(names)} in all)")
        raise DataError(f"{pattern!r}: matches no track and no group; there {'is' if close else 'are'} {there}")
    return found


def _chosen(groups: set[str], share: float) -> set[str]:
    """The groups whose hash falls within the share; at least one of two, and never all."""

    def place(group: str) -> float:
        return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64

    ordered = sorted(groups, key=place)
    count = sum(place(group) < share for group in ordered)
    return set(ordered[: min(max(count, 1), len(ordered) - 1)]) if ordered else set()


def _check_groups(sides: dict[Track, Side]) -> None:
    first: dict[str, Track] = {}
    for track, side in sides.items():
        other = first.setdefault(track.group, track)
        if sides[other] != side:
            where = f"{other.name} in {sides[other]}, {track.name} in {side}"
            raise DataError(f"{track.group}: is on both sides of the split ({where}); hold out the whole group")
