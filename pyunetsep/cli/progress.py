"""What the commands' progress bars have in common."""

from __future__ import annotations

import math
import sys
from typing import Any


class ProgressBar:
    """A bar on standard error where that is a terminal, and lines beside it; in a pipe the lines alone."""

    def __init__(self) -> None:
        self.bar: Any = None

    def begin(self, **settings: Any) -> None:
        """A bar, with these settings of tqdm, in place of the one before."""
        from tqdm import tqdm

        self.close()
        self.bar = tqdm(**settings, leave=False, disable=not sys.stderr.isatty(), file=sys.stderr)

    def reach(self, done: float) -> None:
        self.bar.update(done - self.bar.n)

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        print(text, file=sys.stderr)

    def say_error(self, path: str, message: str) -> None:
        """That something went wrong with a file, which the message may begin with."""
        self.say(f"pyunetsep: error: {message if message.startswith(path) else f'{path}: {message}'}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class SongBar(ProgressBar):
    """The seconds of one song."""

    def show(self, done_s: float, total_s: float) -> None:
        """`total_s` is infinite where it is not known."""
        if self.bar is None:
            known = math.isfinite(total_s)
            bar = "{percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s, {remaining} left"
            self.begin(
                total=round(total_s, 1) if known else None,
                bar_format=f"separating: {bar if known else '{n:.0f} s in {elapsed}'}",
            )
        self.reach(done_s)
