"""What there is to hear: tracks, each with a recording a stem, or with one alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .licences import permits_commercial_use

STEMS = ("vocals", "accompaniment")

Kind = Literal["song", "vocals", "speech", "accompaniment"]
Side = Literal["", "train", "validation", "test"]

# What manifests and folders call loose recordings.
KINDS: dict[str, Kind] = {
    "vocals": "vocals",
    "singing": "vocals",
    "speech": "speech",
    "accompaniment": "accompaniment",
}


@dataclass(frozen=True)
class Source:
    """One audio file, or one stream of a container.

    Attributes:
        path: of the file.
        stream: which of its audio streams, from 0 on.
    """

    path: Path
    stream: int = 0

    def __str__(self) -> str:
        return f"{self.path}, stream {self.stream}" if self.stream else str(self.path)


@dataclass(frozen=True)
class Track:
    """A song with both stems, or a loose recording of one.

    Attributes:
        name: unique among the tracks that were found together.
        sources: stem ("vocals", "accompaniment") -> the recordings that add up to it.
        kind: "song", or what a loose recording is.
        licence: as the data states it, "" if it does not.
        group: of the singer or the song: what must never be on both sides of a split.
        split: where the data itself puts the track, "" if it does not say.
    """

    name: str
    sources: Mapping[str, tuple[Source, ...]] = field(hash=False)
    kind: Kind
    licence: str = ""
    group: str = ""
    split: Side = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.name)


@dataclass(frozen=True)
class Found:
    """A track whose name may have to grow to be unique; the folders of `named_after` tell it from others."""

    name: str
    sources: Mapping[str, tuple[Source, ...]]
    kind: Kind
    named_after: Path
    licence: str = ""
    group: str = ""
    split: Side = ""


def permissive(tracks: Iterable[Track]) -> list[Track]:
    """The tracks whose licence is known to allow commercial use."""
    return [track for track in tracks if permits_commercial_use(track.licence)]
