"""What the commands' progress bars have in common."""

from __future__ import annotations

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

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
