"""The file of results: scores song by song, written after each, so that a run that was stopped goes on where it was.

    {"format": 1, "options": {...}, "versions": {...}, "metrics": {name: what it is}, "failed": {song: why},
     "models": {as asked for: {"identity": {...}, "device": "cpu", "aggregates": {metric: {stem: {...}}},
                               "songs": {song: {"files": [...], "duration_s": ..., metric: {...}, ...}}}}}

Scores are in dB, null where they are not defined.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..audio.files import file_error
from ..config import shown
from ..errors import OutputExistsError
from ..song_files import StrPath
from .aggregates import aggregates
from .metrics import METRICS

FORMAT = 1
DIGITS = 5  # after the point, as museval's files have


class Results:
    """Scores by model and song, in memory and, if they have a path, on disk."""

    def __init__(
        self, path: StrPath | None, options: Mapping[str, Any], versions: Mapping[str, str], *, overwrite: bool = False
    ) -> None:
        """Takes over what the file holds already, or writes an empty one.

        Raises:
            OutputExistsError: a file is there that holds no results, or those of other options or versions, and
                `overwrite` does not say to replace it. AudioFileError: it cannot be written.
        """
        self.path = None if path is None else Path(path)
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "options": _plain(options),
            "versions": dict(versions),
            "metrics": {name: METRICS[name] for name in options["metrics"]},
            "failed": {},
            "models": {},
        }
        if self.path is None:
            return
        if self.path.exists() and not overwrite:
            self._take_over(self.path)
        else:
            self._make_folder(self.path)
            self.save()  # what cannot be written shows before any work

    def model(self, name: str, identity: Mapping[str, Any], device: str) -> None:
        """Has a model's scores filed under this name.

        Raises:
            OutputExistsError: the file has scores of another model under it.
        """
        models = self.document["models"]
        there = models.setdefault(name, {"identity": _plain(identity), "device": device, "songs": {}})
        if there["identity"] != _plain(identity):
            self._refuse(f"holds scores of another model called {name}")
        there["device"] = device

    def scored(self, model: str, song: str, files: list[Any]) -> bool:
        """Whether the song, with these files, has its scores."""
        found = self.document["models"][model]["songs"].get(song)
        return found is not None and found["files"] == files

    def add(self, model: str, song: str, report: Mapping[str, Any]) -> None:
        self.document["models"][model]["songs"][song] = _plain(report)

    def fail(self, song: str, why: str) -> None:
        self.document["failed"][song] = why

    def finish(self, songs: Sequence[str]) -> None:
        """Sums up what there is of these songs, and keeps no others, in their order."""
        document = self.document
        document["failed"] = {song: why for song, why in document["failed"].items() if song in songs}
        for model in document["models"].values():
            model["songs"] = {song: model["songs"][song] for song in songs if song in model["songs"]}
            reports = list(model["songs"].values())
            model["aggregates"] = _plain(aggregates(reports, document["options"]["metrics"]))

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        if self.path is None:
            return
        text = json.dumps(self.document, indent=1, ensure_ascii=False, allow_nan=False)
        try:
            write_atomically(self.path, f"{text}\n".encode())
        except OSError as error:
            raise file_error(str(self.path), error) from None

    def _take_over(self, path: Path) -> None:
        try:
            found = _plain(json.loads(path.read_bytes()))
            if not isinstance(found, dict) or found.get("format") != FORMAT or found.keys() != self.document.keys():
                raise ValueError
            if not all(isinstance(found[part], dict) for part in ("options", "versions", "models")):
                raise ValueError
        except OSError as error:
            raise file_error(str(path), error) from None
        except (ValueError, RecursionError):  # no JSON, or not ours
            self._refuse("is there, and holds no results of this program")
        for part in ("options", "versions"):
            there, here = found[part], self.document[part]
            for name in sorted({*there, *here}):
                if there.get(name) != here.get(name):
                    self._refuse(
                        f"holds results of other {part}: {name} is {shown(there.get(name))} there, "
                        f"{shown(here.get(name))} now"
                    )
        try:
            for model in found["models"].values():
                self._check_scores(model)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
            self._refuse("is damaged")
        self.document["models"] = found["models"]  # what failed is tried again

    def _check_scores(self, model: Any) -> None:
        """Whether a model's part of a file can be gone on with; what is raised where it cannot follows from the damage.

        Its aggregates are made anew at the end, so these can be: that covers all scores.
        """
        reports = list(model["songs"].values())
        if not (isinstance(model["identity"], dict) and all(isinstance(report["files"], list) for report in reports)):
            raise TypeError
        aggregates(reports, self.document["options"]["metrics"])

    def _refuse(self, what: str) -> None:
        raise OutputExistsError(f"{self.path}: {what}; another file, or --overwrite (overwrite=True), starts anew")

    @staticmethod
    def _make_folder(path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise file_error(f"{path.parent}: the folder cannot be made", error) from None


def _plain(value: Any) -> Any:
    """As JSON has it: rounded, and null for NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(float(value), DIGITS) if math.isfinite(value) else None
    return value
